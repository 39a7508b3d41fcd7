"""Bytes that rot, tails that tear, records of another life: told apart, and never taken for what they are not.

FAULTS rows 6 and 7, RULES W1, W2, W7; HAZARDS 23 and 40.
"""

import random

import pytest

from consensus.core.interface import HardState
from consensus.storage.errors import StorageFailed, UnknownFormat
from consensus.storage.interface import GroupAppend, Recovery
from consensus.storage.memory import MemoryFileSystem
from consensus.storage.records import HEADER_BYTES, Kind, find_headers
from consensus.storage.wal import Wal
from tests.storage.logs import append, entries, indexes, install, open_log, segment_files, span, vote


def active_path(wal: Wal) -> str:
    assert wal._active is not None
    return f"/data/wal/{wal._active.prepared.number:016x}.wal"


def number_of(path: str) -> int:
    return int(path.removesuffix(".wal").rpartition("/")[2], 16)


def three_batches() -> tuple[MemoryFileSystem, str, list[int]]:
    """Three synced batches of two groups, not covered by an empty one; where each starts, and where the last ends."""
    disk = MemoryFileSystem()
    wal, _ = open_log(disk)
    assert wal._active is not None
    ends = []
    for number in range(3):
        ends.append(wal._active.end)
        first = 1 + number * 3
        wal.write([append(1, first, first + 2), vote(1, number + 1), append(2, first, first + 2, size=700)])
        wal.sync()
    return disk, active_path(wal), [*ends, wal._active.end]


def state(recovery: Recovery) -> dict[int, tuple[HardState, list[tuple[int, int]]]]:
    return {group: (recovery.groups[group].hard_state, indexes(recovery, group)) for group in recovery.groups}


def copy_of(disk: MemoryFileSystem) -> MemoryFileSystem:
    other = MemoryFileSystem()
    other.mkdir("/data/wal")
    for path in segment_files(disk).values():
        other.open(path, create=True)
        other.overwrite(path, disk.read(path))
    other.sync_directory("/data/wal")
    return other


def test_a_tail_torn_at_every_byte_is_discarded() -> None:
    disk, path, ends = three_batches()
    data = disk.read(path)
    used = len(data[ends[2] : ends[3]].rstrip(b"\0"))
    offsets = [*range(0, used, 29), *range(min(200, used)), *range(used - 100, used)]
    for cut in offsets:
        torn = copy_of(disk)
        torn.overwrite(path, bytes(ends[3] - ends[2] - cut), ends[2] + cut)
        recovery = open_log(torn)[1]
        assert state(recovery) == {1: (HardState(2, 1), span(1, 6)), 2: (HardState(), span(1, 6))}
        assert recovery.damage == ""
        assert recovery.warnings == ()
        assert (recovery.discarded_tail_bytes > 0) == (cut >= HEADER_BYTES)


def test_a_tail_torn_over_an_old_segments_bytes_is_discarded() -> None:
    disk, path, ends = three_batches()
    chance = random.Random(1)
    for cut in range(0, ends[3] - ends[2], 97):
        torn = copy_of(disk)
        torn.overwrite(path, chance.randbytes(ends[3] - ends[2] - cut), ends[2] + cut)
        recovery = open_log(torn)[1]
        assert state(recovery)[1] == (HardState(2, 1), span(1, 6))


def test_a_flip_in_the_last_batch_is_a_torn_tail() -> None:
    disk, path, ends = three_batches()
    for offset in range(ends[2], ends[3], 41):
        torn = copy_of(disk)
        torn.flip_bit(path, offset, offset % 8)
        assert state(open_log(torn)[1])[2] == (HardState(), span(1, 6))


def test_a_flip_below_a_durable_batch_is_always_noticed() -> None:
    """Whatever byte it hits: reported as damage of its group, or, when nothing live depends on it, as a warning with
    the whole state. Never shorter, never different, never repaired by forgetting: the next start says it again."""
    disk, path, ends = three_batches()
    whole = state(open_log(copy_of(disk))[1])
    told = {"group": 0, "warning": 0}
    chance = random.Random(2)
    for offset in [*range(ends[0], ends[2], 31), *(chance.randrange(ends[0], ends[2]) for _ in range(100))]:
        rotten = copy_of(disk)
        rotten.flip_bit(path, offset, offset % 8)
        first = open_log(rotten)[1]
        rotten.crash(random.Random(offset))
        for recovery in (first, open_log(rotten)[1]):
            damaged = {number for number, group in recovery.groups.items() if group.damage}
            assert recovery.damage == "", "one flip never hides which group it hit"
            if damaged:
                told["group"] += 1
                assert all(state(recovery)[number] == whole[number] for number in whole if number not in damaged)
            else:
                told["warning"] += 1
                assert recovery.warnings
                assert state(recovery) == whole
    assert all(told.values()), told


def test_damage_names_the_group_and_the_other_goes_on() -> None:
    disk, path, ends = three_batches()
    data = disk.read(path)
    hit = next(
        header
        for header in find_headers(data, ends[1], number_of(path))
        if (header.kind, header.group, header.index) == (Kind.ENTRY, 2, 5)
    )
    disk.flip_bit(path, hit.payload_offset + 10)
    disk.kill()
    wal, recovery = open_log(disk)
    assert recovery.damage == ""
    assert recovery.groups[1].damage == ""
    assert "group 2: 1 log entries from index 5 on are damaged" in recovery.groups[2].damage
    assert f"segment {number_of(path)} offset" in recovery.groups[2].damage
    assert indexes(recovery, 1) == span(1, 9)
    assert indexes(recovery, 2) == span(1, 4)
    for first in range(10, 200, 10):
        wal.write([append(1, first, first + 9, size=900)])
        wal.sync()
    wal.write([install(1, 199)])
    wal.sync()
    wal.release(1, 200)
    wal.close()
    again = open_log(disk)[1]
    assert again.groups[2].damage
    assert indexes(again, 2) == span(1, 4)
    assert disk.exists(path), "the damaged segment is evidence, and may be all there is"


def test_damage_of_a_vote_stays_damage() -> None:
    disk, path, ends = three_batches()
    data = disk.read(path)
    hit = next(
        header
        for header in find_headers(data, ends[1], number_of(path))
        if header.kind is Kind.HARD_STATE and header.group == 1
    )
    torn = copy_of(disk)
    torn.flip_bit(path, hit.offset + 20)
    later = open_log(torn)[1]
    assert later.groups[1].damage == "", "a later record of the same log tells the term and vote again"
    assert later.warnings
    disk.overwrite(path, bytes(ends[3] - ends[2]), ends[2])
    disk.kill()
    wal, _ = open_log(disk)
    wal.close()
    disk.flip_bit(path, hit.offset + 20)
    assert open_log(disk)[1].groups[1].damage == "", "the head of the next segment tells it again"


def test_a_lost_vote_is_damage() -> None:
    disk = MemoryFileSystem()
    wal, _ = open_log(disk)
    wal.write([vote(1, 9, 2), append(1, 1, 2, term=9)])
    wal.idle()
    path = active_path(wal)
    hit = next(header for header in find_headers(disk.read(path), 0, number_of(path)) if header.kind is Kind.HARD_STATE)
    disk.flip_bit(path, hit.payload_offset)
    for _ in range(3):
        disk.kill()
        damage = open_log(disk)[1].groups[1].damage
        assert "damaged" in damage


def test_an_unreadable_batch_and_index_stop_the_node() -> None:
    disk, path, ends = three_batches()
    disk.overwrite(path, bytes(ends[2] - ends[1]), ends[1])
    disk.kill()
    before = disk.read(path)
    wal, recovery = open_log(disk)
    assert "any group may be hit" in recovery.damage
    assert all(group.damage for group in recovery.groups.values())
    for call in (wal.sync, wal.idle, lambda: wal.write([append(3, 1, 1)])):
        with pytest.raises(StorageFailed, match="any group may be hit"):
            call()
    wal.prepare()
    wal.close()
    assert disk.read(path) == before, "evidence is not written over"
    assert open_log(disk)[1].damage


def test_a_damaged_head_of_the_newest_segment_stops_the_node() -> None:
    disk, path, _ = three_batches()
    disk.overwrite(path, bytes(4096))
    assert "no segment" in open_log(disk)[1].damage

    disk, _, _ = three_batches()
    disk.kill()
    wal, _ = open_log(disk)
    wal.write([append(1, 10, 12)])
    wal.sync()
    wal.write([append(1, 13, 13)])
    wal.sync()
    disk.overwrite(active_path(wal), bytes(4096))
    assert open_log(disk)[1].damage


def test_a_lost_segment_file_is_damage_of_those_who_had_entries_in_it() -> None:
    disk = MemoryFileSystem()
    wal, _ = open_log(disk)
    for first in range(1, 200, 10):
        wal.write([append(1, first, first + 9, size=900), vote(2, first)])
        wal.sync()
    numbers = [row.number for row in wal._segments]
    assert len(numbers) > 2
    disk.unlink(segment_files(disk)[numbers[1]])
    disk.kill()
    recovery = open_log(disk)[1]
    assert recovery.groups[1].damage
    assert recovery.groups[2].damage == ""
    assert recovery.groups[2].hard_state == HardState(191, 1, 0)


def test_records_of_another_place_never_verify() -> None:
    """HAZARDS 40, misdirected writes: an old segment's bytes under a new number, and a batch written elsewhere."""
    disk, path, ends = three_batches()
    data = disk.read(path)
    assert len(list(find_headers(data, 0, number_of(path)))) > 20
    assert list(find_headers(data, 0, number_of(path) + 1)) == []
    shifted = data[: ends[3]] + data[ends[2] : ends[3]] + data[ends[3] + ends[3] - ends[2] :]
    assert list(find_headers(shifted, ends[3], number_of(path))) == []
    misdirected = copy_of(disk)
    misdirected.overwrite(path, data[ends[0] : ends[1]], ends[2])
    assert state(open_log(misdirected)[1]) == {1: (HardState(2, 1), span(1, 6)), 2: (HardState(), span(1, 6))}


def test_an_old_life_of_a_recycled_segment_does_not_come_back() -> None:
    """HAZARDS 40. The recycled file holds whole batches of its former number right after the new tail; no byte of it is
    zero, and batch numbers there may even fit."""
    disk = MemoryFileSystem()
    wal, _ = open_log(disk)
    recycled = False
    seen: set[int] = set()
    for last in range(1, 81):
        wal.write([GroupAppend(group=1, entries=entries(last, last, 1, 2_000))])
        wal.sync()
        wal.write([install(1, last)])
        wal.sync()
        wal.release(1, last + 1)
        wal.prepare()
        assert wal._active is not None
        number, end = wal._active.prepared.number, wal._active.end
        stale = disk.read(active_path(wal))[end:]
        if b"PSWL" in stale:
            recycled = True
            other = copy_of(disk)
            recovery = open_log(other)[1]
            assert recovery.damage == ""
            snapshot = recovery.groups[1].snapshot
            assert snapshot is not None
            assert (snapshot.index, recovery.groups[1].entries) == (last, ())
        seen.add(number)
    assert recycled
    assert len(seen) > 3


def test_a_newer_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = MemoryFileSystem()
    monkeypatch.setattr("consensus.storage.records.FORMAT_VERSION", 2)
    open_log(disk)[0].close()
    monkeypatch.undo()
    before = {path: disk.read(path) for path in segment_files(disk).values()}
    with pytest.raises(UnknownFormat, match="version 2"):
        open_log(disk)
    assert {path: disk.read(path) for path in segment_files(disk).values()} == before


def test_a_newer_head_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = MemoryFileSystem()
    monkeypatch.setattr("consensus.storage.tables.HEAD_VERSION", 9)
    open_log(disk)[0].close()
    monkeypatch.undo()
    with pytest.raises(UnknownFormat, match="head of version 9"):
        open_log(disk)


def test_no_rubbish_breaks_the_reader() -> None:
    """Any number of holes, in any files, also cut ones: never an entry that was not written, and never a word less than
    there was without a report, as long as something written later is left to tell."""
    for seed in range(150):
        chance = random.Random(seed)
        disk = MemoryFileSystem()
        wal, _ = open_log(disk)
        for first in range(1, 160, 10):
            wal.write([append(1, first, first + 9, size=700), append(2, first, first + 9, size=5), vote(2, first)])
            assert wal._active is not None
            last, last_end = active_path(wal), wal._active.end
            wal.sync()
        wal.close()
        disk.kill()
        paths = list(segment_files(disk).values())
        for _ in range(chance.randrange(1, 6)):
            path = chance.choice(paths)
            length = chance.choice([1, 8, 64, 600, 5000])
            rubbish = chance.choice([bytes(length), chance.randbytes(length)])
            at = chance.randrange(0, last_end - 12_288 if path == last else 60_000)
            disk.overwrite(path, rubbish[: last_end - 12_288 - at] if path == last else rubbish, at)
        if chance.randrange(4) == 0:
            path = chance.choice([path for path in paths if path != last])
            whole = disk.read(path)
            disk.unlink(path)
            disk.open(path, create=True)
            disk.overwrite(path, whole[: chance.randrange(0, len(whole))])
        for _ in range(2):
            disk.kill()
            recovery = open_log(disk)[1]
            for number, group in recovery.groups.items():
                found = indexes(recovery, number)
                assert found == span(1, len(found))
                assert group.damage or recovery.warnings or found == span(1, 160)
