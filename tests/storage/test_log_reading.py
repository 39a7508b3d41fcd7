"""Entries that were left to the log on disk, read back while it is written."""

from collections.abc import Callable

import pytest

from consensus.core.interface import Entry, EntryKind
from consensus.storage.errors import StorageFailed
from consensus.storage.interface import File, GroupAppend
from consensus.storage.memory import MemoryFileSystem
from consensus.storage.options import WalOptions
from consensus.storage.wal import Wal
from tests.storage.logs import OPTIONS, append, entries, entry, install, open_log, segment_files

LEFT = WalOptions(
    segment_bytes=64 << 10,
    flush_bytes_max=32 << 10,
    reserve_bytes=32 << 10,
    open_copy_bytes_max=0,
    recovered_bytes_max=0,
)


def left(*whole: Entry) -> list[Entry]:
    return [each.left_out() for each in whole]


class Reads:
    """Counts reads of an opened log, and calls back before the first."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, before: Callable[[], None] = lambda: None) -> None:
        self.count = 0
        opened = MemoryFileSystem.open

        def open_counting(disk: MemoryFileSystem, path: str, *, create: bool = False) -> File:
            file = opened(disk, path, create=create)
            pread = file.pread

            def counting(length: int, offset: int) -> bytes:
                self.count += 1
                if self.count == 1:
                    before()
                return pread(length, offset)

            file.pread = counting  # type: ignore[method-assign]
            return file

        monkeypatch.setattr(MemoryFileSystem, "open", open_counting)


@pytest.fixture
def disk() -> MemoryFileSystem:
    return MemoryFileSystem()


def test_it_comes_back_as_it_was_across_batches_and_segments(disk: MemoryFileSystem) -> None:
    wal, _ = open_log(disk)
    for index in range(1, 41, 2):
        wal.write([append(1, index, index + 1, size=5000), append(2, index, index + 1, size=10)])
    assert wal.segment_count > 2
    for group, size in ((1, 5000), (2, 10)):
        whole = entries(1, 40, size=size)
        assert wal.load(group, left(*whole)) == whole
    mixed = (entry(3, kind=EntryKind.CONFIGURATION), *entries(4, 5, size=5000), entry(6, size=0))
    assert left(*mixed)[0] is mixed[0], "configurations and what is empty stay"
    assert wal.load(1, left(*mixed)) == mixed


def test_small_ones_are_read_together(disk: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    wal, _ = open_log(disk)
    wal.write([append(1, 1, 100, size=20)])
    reads = Reads(monkeypatch)
    assert wal.load(1, left(*entries(1, 100, size=20))) == entries(1, 100, size=20)
    assert reads.count == 1


def test_what_was_superseded_released_or_covered_is_not_there(disk: MemoryFileSystem) -> None:
    wal, _ = open_log(disk)
    wal.write([append(1, 1, 9), append(2, 1, 9), append(3, 1, 9)])
    wal.write([append(1, 5, 6, term=2), install(2, 4), install(3, 20, term=2)])
    wal.sync()
    wal.release(2, 5)
    assert wal.load(1, left(*entries(5, 5))) is None, "of another term"
    assert wal.load(1, left(*entries(7, 7))) is None, "behind what superseded it"
    assert wal.load(1, left(*entries(4, 4), *entries(5, 6, term=2))) == (*entries(4, 4), *entries(5, 6, term=2))
    assert wal.load(2, left(*entries(4, 5))) is None, "released"
    assert wal.load(2, left(*entries(5, 9))) == entries(5, 9)
    assert wal.load(3, left(*entries(9, 9))) is None, "a foreign snapshot took the place of all"
    assert wal.load(7, left(*entries(1, 1))) is None, "no such group"
    wal.write([GroupAppend(group=1, tombstone=1)])
    assert wal.load(1, left(*entries(1, 1))) is None, "its replica was deleted"


def test_what_recovery_left_there_can_be_read_wherever_it_was_copied_to(disk: MemoryFileSystem) -> None:
    wal, _ = open_log(disk, LEFT)
    wal.write([append(1, 1, 30, size=3000), append(2, 1, 3)])
    wal.sync()
    for options in (LEFT, OPTIONS, LEFT, WalOptions(segment_bytes=256 << 10, reserve_bytes=32 << 10)):
        disk.kill()
        wal, recovery = open_log(disk, options)
        found = recovery.groups[1].entries
        held = sum(len(each.payload) for each in found)
        assert held == min(90_000, options.recovered_bytes_max)
        assert [each.stored_bytes or len(each.payload) for each in found] == [3000] * 30
        assert wal.load(1, found) == entries(1, 30, size=3000)
        assert wal.load(2, left(*recovery.groups[2].entries)) == entries(1, 3)


def test_only_the_newest_come_with_their_payload(disk: MemoryFileSystem) -> None:
    wal, _ = open_log(disk)
    wal.write([append(1, 1, 30, size=1000)])
    wal.sync()
    disk.kill()
    _, recovery = open_log(disk, WalOptions(segment_bytes=64 << 10, reserve_bytes=32 << 10, recovered_bytes_max=4500))
    assert [each.index for each in recovery.groups[1].entries if len(each.payload)] == [27, 28, 29, 30]


def test_a_segment_may_be_recycled_under_a_reader(disk: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between looking the place up and reading there: what lies there now does not verify, and it is gone."""
    options = WalOptions(segment_bytes=64 << 10, reserve_bytes=32 << 10, retired_segments_max=8)
    wal, _ = open_log(disk, options)
    wal.write([append(1, 1, 10, size=5000)])

    def recycle() -> None:
        wal.write([append(1, 11, 20, size=5000), install(1, 20)])
        wal.sync()
        wal.release(1, 21)
        for index in range(21, 61, 10):
            wal.write([append(1, index, index + 9, size=5000)])
            wal.sync()

    Reads(monkeypatch, before=recycle)
    assert wal.load(1, left(*entries(1, 10, size=5000))) is None


def test_one_that_moved_under_a_reader_is_found_where_it_went(
    disk: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RULES W4: the last entries of an old segment are written again, and its file is used for another one."""
    options = WalOptions(segment_bytes=64 << 10, reserve_bytes=32 << 10, held_segments_max=0, open_copy_bytes_max=0)
    wal, _ = open_log(disk, options)
    wal.write([append(2, 1, 2, size=1000), append(1, 1, 10, size=5000)])
    before = wal._groups[2].place(1, 1)

    def move() -> None:
        for index in range(11, 101, 10):
            wal.write([append(1, index, index + 9, size=5000), install(1, index + 9)])
            wal.sync()
            wal.release(1, index + 10)
            wal.prepare()

    Reads(monkeypatch, before=move)
    assert wal.load(2, left(*entries(1, 2, size=1000))) == entries(1, 2, size=1000)
    assert wal._groups[2].place(1, 1) != before


def damage(wal: Wal, disk: MemoryFileSystem) -> None:
    place = wal._groups[1].place(3, 1)
    assert place is not None
    disk.flip_bit(segment_files(disk)[place[0]], place[1] + 7)


def test_damage_is_never_handed_out(disk: MemoryFileSystem) -> None:
    """RULES W7: the process ends, and its next start finds what the replica may have forgotten."""
    wal, _ = open_log(disk)
    wal.write([append(1, 1, 5)])
    wal.sync()
    wal.idle()
    damage(wal, disk)
    assert wal.load(1, left(*entries(4, 5))) == entries(4, 5)
    with pytest.raises(StorageFailed, match=r"is damaged: of group 1, entries 2 to 4 .* entry 3 at offset"):
        wal.load(1, left(*entries(2, 4)))
    disk.kill()
    _, recovery = open_log(disk)
    assert recovery.groups[1].forgetful


def test_a_disk_that_does_not_read_ends_it_too(disk: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError(5, "Input/output error")

    wal, _ = open_log(disk)
    wal.write([append(1, 1, 5)])
    Reads(monkeypatch, before=fail)
    with pytest.raises(StorageFailed, match="Input/output error"):
        wal.load(1, left(*entries(2, 4)))
