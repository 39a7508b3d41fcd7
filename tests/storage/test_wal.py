"""The log as its host sees it: what was written comes back, in order, and nothing else."""

import random
from dataclasses import replace

import pytest

from consensus.core.errors import InvariantViolated
from consensus.core.interface import Entry, EntryKind, HardState
from consensus.storage.errors import IdentityMismatch, StorageFailed
from consensus.storage.identity import load_or_create
from consensus.storage.interface import Creation, File, GroupAppend, Identity
from consensus.storage.memory import MemoryFile, MemoryFileSystem
from consensus.storage.options import WalOptions
from consensus.storage.records import HEADER_BYTES
from consensus.storage.segments import SegmentPool
from consensus.storage.wal import Wal
from tests.storage.logs import (
    CONFIGURATION,
    DIRECTORY,
    IDENTITY,
    OPTIONS,
    append,
    entries,
    entry,
    indexes,
    install,
    open_log,
    reopen,
    segment_files,
    snapshot,
    span,
    vote,
)


@pytest.fixture
def disk() -> MemoryFileSystem:
    return MemoryFileSystem()


def test_a_new_log_is_empty_and_counts_its_starts(disk: MemoryFileSystem) -> None:
    wal, recovery = open_log(disk)
    assert (recovery.incarnation, recovery.groups, recovery.damage) == (1, {}, "")
    wal.close()
    assert reopen(disk).incarnation == 2
    assert reopen(disk).incarnation == 3


def test_a_node_that_took_part_never_starts_on_an_empty_log(disk: MemoryFileSystem) -> None:
    """Its identity may outlive its log: what it voted and acknowledged would be forgotten."""
    disk.mkdir("/data")
    identity = load_or_create(disk, "/data", b"c" * 16, 1)
    Wal.open(disk, DIRECTORY, identity.identity(), OPTIONS)[0].close()
    for name in disk.listdir(DIRECTORY):
        disk.unlink(f"{DIRECTORY}/{name}")
    # Before it takes part an empty log is as good as another.
    Wal.open(disk, DIRECTORY, identity.identity(), OPTIONS)[0].close()
    identity.activate()
    assert Wal.open(disk, DIRECTORY, identity.identity(), OPTIONS)[1].incarnation == 2
    for name in disk.listdir(DIRECTORY):
        disk.unlink(f"{DIRECTORY}/{name}")
    for _ in range(2):
        with pytest.raises(IdentityMismatch, match="restore the folder"):
            Wal.open(disk, DIRECTORY, load_or_create(disk, "/data", b"c" * 16, 1).identity(), OPTIONS)
        assert disk.listdir(DIRECTORY) == []


def test_what_many_groups_wrote_comes_back(disk: MemoryFileSystem) -> None:
    wal, _ = open_log(disk)
    wal.write([append(1, 1, 3), vote(1, 7, 2, 1), append(2, 1, 2, term=4), vote(3, 9, 3)])
    wal.write([append(1, 4, 5), append(2, 3, 3, term=5)])
    wal.sync()
    recovery = reopen(disk)
    assert indexes(recovery, 1) == span(1, 5)
    assert indexes(recovery, 2) == [(1, 4), (2, 4), (3, 5)]
    assert recovery.groups[1].hard_state == HardState(7, 2, 1)
    assert recovery.groups[3].hard_state == HardState(9, 3, 0)
    assert recovery.groups[3].entries == ()
    assert all(group.damage == "" for group in recovery.groups.values())


def test_kinds_and_empty_and_large_payloads_survive(disk: MemoryFileSystem) -> None:
    wal, _ = open_log(disk)
    written = (
        entry(1, size=0, kind=EntryKind.NOOP),
        entry(2, size=1, kind=EntryKind.CONFIGURATION),
        entry(3, size=40_000),
        entry(4, size=150_000),  # more than a segment
        entry(5),
    )
    wal.write([GroupAppend(group=1, entries=written)])
    wal.sync()
    assert reopen(disk).groups[1].entries == written
    assert reopen(disk).groups[1].entries == written


def test_an_entry_supersedes_what_is_at_and_above_it(disk: MemoryFileSystem) -> None:
    wal, _ = open_log(disk)
    wal.write([append(1, 1, 10), append(2, 1, 10)])
    wal.write([append(1, 5, 6, term=2)])
    wal.sync()
    recovery = reopen(disk)
    assert indexes(recovery, 1) == span(1, 4) + span(5, 6, 2)
    assert indexes(recovery, 2) == span(1, 10)


def test_a_snapshot_of_an_entry_in_the_log_keeps_what_is_above(disk: MemoryFileSystem) -> None:
    wal, _ = open_log(disk)
    wal.write([append(1, 1, 10)])
    wal.write([install(1, 6)])
    wal.sync()
    recovery = reopen(disk)
    assert recovery.groups[1].snapshot == snapshot(6)
    assert indexes(recovery, 1) == span(7, 10)


def test_a_snapshot_of_a_foreign_entry_drops_the_log(disk: MemoryFileSystem) -> None:
    wal, _ = open_log(disk)
    wal.write([append(1, 1, 10)])
    wal.write([GroupAppend(group=1, install=snapshot(6, 3), hard_state=HardState(3), entries=entries(7, 8, 3))])
    wal.sync()
    recovery = reopen(disk)
    assert recovery.groups[1].snapshot == snapshot(6, 3)
    assert indexes(recovery, 1) == span(7, 8, 3)


def test_a_snapshot_whose_entry_went_with_a_recycled_segment_keeps_what_is_above(disk: MemoryFileSystem) -> None:
    """The record itself says that the log held its entry; a reader could not tell any more."""
    wal, _ = open_log(disk)
    wal.write([append(1, 1, 100, size=200)])
    wal.sync()
    first = wal.segment_count
    wal.write([append(1, 101, 150, size=800)])
    wal.write([install(1, 100)])
    wal.sync()
    wal.release(1, 101)
    assert wal.segment_count < first + 2
    assert indexes(reopen(disk), 1) == span(101, 150)


def test_entries_that_no_durable_snapshot_covers_are_not_released(disk: MemoryFileSystem) -> None:
    wal, _ = open_log(disk)
    wal.write([append(1, 1, 200, size=900)])
    wal.sync()
    wal.release(1, 201)
    wal.write([install(1, 150)])
    wal.release(1, 151)
    wal.idle()
    disk.crash(random.Random(1))
    recovery = open_log(disk)[1]
    assert recovery.groups[1].snapshot == snapshot(150)
    assert indexes(recovery, 1) == span(151, 200)


def test_segments_are_recycled_and_their_numbers_never_come_back(disk: MemoryFileSystem) -> None:
    wal, _ = open_log(disk)
    seen: set[int] = set()
    used_bytes_max = 0
    last = 0
    for _ in range(60):
        wal.write([append(1, last + 1, last + 20, size=900)])
        wal.sync()
        last += 20
        wal.write([install(1, last - 5)])
        wal.sync()
        wal.release(1, last - 4)
        wal.idle()
        now = set(segment_files(disk))
        assert not (now - seen) & {number for number in seen if number not in now}
        seen |= now
        used_bytes_max = max(used_bytes_max, disk.used_bytes())
    assert used_bytes_max < 12 * OPTIONS.segment_bytes
    assert len(seen) > 15
    assert indexes(reopen(disk), 1) == span(last - 4, last)


def test_idle_groups_never_pin_the_log(disk: MemoryFileSystem) -> None:
    """RULES W4: many groups with a few entries and no snapshot, some of which now and then get one more, beside a busy
    one: the number of segments stays bounded, and nothing of the idle ones is lost."""
    options = replace(OPTIONS, held_segments_max=4)
    wal, _ = open_log(disk, options)
    groups = range(2, 42)
    for group in groups:
        wal.write([append(group, 1, 3), vote(group, group)])
    wal.sync()
    lasts = dict.fromkeys(groups, 3)
    most, last = 0, 0
    for turn in range(200):
        wal.write([append(1, last + 1, last + 20, size=900), install(1, last + 15)])
        wal.sync()
        last += 20
        wal.release(1, last - 4)
        group = groups[turn % len(groups)]
        lasts[group] += 1
        wal.write([append(group, lasts[group], lasts[group], size=20)])
        wal.sync()
        wal.prepare()
        most = max(most, wal.segment_count)
    assert most <= 4 + 3
    for _ in range(2):
        recovery = reopen(disk, options)
        assert all(group.damage == "" for group in recovery.groups.values())
        assert indexes(recovery, 1) == span(last - 4, last)
        for group in groups:
            assert [index for index, _ in indexes(recovery, group)] == list(range(1, lasts[group] + 1))
            assert recovery.groups[group].hard_state.term == group


def test_segments_that_hold_next_to_nothing_go_early(disk: MemoryFileSystem) -> None:
    """A catalogue that writes a line now and then held eight segments beside the busy groups' own."""
    options = replace(OPTIONS, segment_bytes=256 << 10, held_segments_max=8)
    wal, _ = open_log(disk, options)
    most, last = 0, 0
    for turn in range(1, 41):
        wal.write([append(2, turn, turn, size=20), append(1, last + 1, last + 100, size=900)])
        wal.sync()
        last += 100
        wal.write([install(1, last)])
        wal.sync()
        wal.release(1, last + 1)
        wal.prepare()
        most = max(most, wal.segment_count)
    assert most <= 5
    recovery = reopen(disk, options)
    assert [index for index, _ in indexes(recovery, 2)] == list(range(1, 41))


def test_what_is_rewritten_is_read_alone(disk: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was found by reading the whole segment: for 64 bytes of an idle group 64 MiB were read, into fresh memory."""
    options = replace(OPTIONS, segment_bytes=512 << 10, held_segments_max=0)
    wal, _ = open_log(disk, options)
    wal.write([append(2, 1, 3), append(3, 1, 1, size=70_000), append(4, 1, 2)])
    for first in range(1, 1600, 20):
        wal.write([append(1, first, first + 19, size=900), install(1, first + 19)])
        wal.sync()
        wal.release(1, first + 20)
    assert wal._rewriting.unread
    read: list[int] = []
    pread = MemoryFile.pread
    monkeypatch.setattr(
        MemoryFile, "pread", lambda file, length, offset: read.append(length) or pread(file, length, offset)
    )
    wal.prepare()
    assert not wal._rewriting.unread
    assert wal._rewriting.segment
    assert read[:2] == [64 << 10, HEADER_BYTES + 70_000], "small entries lie side by side; a large one is read whole"
    assert len(read) == 3
    gathered = wal._rewriting.take()
    assert gathered is not None
    lengths = [(group, entry.index, len(entry.payload)) for group, entry in gathered.entries]
    assert lengths == [(2, 1, 100), (2, 2, 100), (2, 3, 100), (3, 1, 70_000), (4, 1, 100), (4, 2, 100)]


def test_a_segment_that_rotted_is_not_rewritten(disk: MemoryFileSystem) -> None:
    """What does not verify is left for the next start to judge; it is never copied, and never released."""
    options = replace(OPTIONS, held_segments_max=0)
    wal, _ = open_log(disk, options)
    wal.write([append(2, 1, 3)])
    wal.sync()
    assert wal._active is not None
    number = wal._active.prepared.number
    path = segment_files(disk)[number]
    for first in range(1, 200, 20):
        if first == 101:
            at = disk.read(path).index(entry(2).payload)
            disk.flip_bit(path, at)
        wal.write([append(1, first, first + 19, size=900), install(1, first + 19)])
        wal.sync()
        wal.release(1, first + 20)
        if first > 100:
            wal.prepare()
    assert number in wal._rewriting._left_alone
    assert number in segment_files(disk)
    recovery = reopen(disk, options)
    assert recovery.groups[2].forgetful
    assert indexes(recovery, 2) == [(1, 1)]


def test_votes_outlive_the_segment_they_were_written_to(disk: MemoryFileSystem) -> None:
    """HAZARDS 40, second half."""
    wal, _ = open_log(disk)
    wal.write([vote(7, 42, 3, 0)])
    wal.sync()
    assert wal._active is not None
    number = wal._active.prepared.number
    last = 0
    for _ in range(30):
        wal.write([append(1, last + 1, last + 20, size=900), install(1, last + 20)])
        wal.sync()
        last += 20
        wal.release(1, last + 1)
        wal.idle()
    assert number not in segment_files(disk)
    assert reopen(disk).groups[7].hard_state == HardState(42, 3, 0)


def test_a_creation_comes_back_with_its_group(disk: MemoryFileSystem) -> None:
    """RULES I1: also when the record's segment is long recycled."""
    create = Creation(65_540, CONFIGURATION)
    wal, _ = open_log(disk)
    wal.write([GroupAppend(group=7, create=create)])
    wal.sync()
    assert (reopen(disk).groups[7].create, reopen(disk).groups[7].entries) == (create, ())
    disk.kill()
    wal, _ = open_log(disk)
    for first in range(1, 400, 20):
        wal.write([append(1, first, first + 19, size=900), install(1, first + 19)])
        wal.sync()
        wal.release(1, first + 20)
    assert reopen(disk).groups[7].create == create
    disk.kill()
    wal, _ = open_log(disk)
    with pytest.raises(InvariantViolated, match="the group has one here"):
        wal.write([GroupAppend(group=7, create=create)])


def test_a_tombstone_outlives_everything_else_of_its_group(disk: MemoryFileSystem) -> None:
    """RULES I1: what the group held is released, its id never comes back, another replica may be made."""
    wal, _ = open_log(disk)
    wal.write([GroupAppend(group=7, create=Creation(65_540, CONFIGURATION))])
    for first in range(1, 200, 20):
        wal.write([append(7, first, first + 19, size=900), vote(7, first), append(1, first, first + 19)])
        wal.sync()
    held = wal.segment_count
    wal.write([GroupAppend(group=7, tombstone=65_540)])
    wal.sync()
    for first in range(201, 300, 20):
        wal.write([append(1, first, first + 19)])
        wal.sync()
    wal.write([install(1, 300)])
    wal.sync()
    wal.release(1, 301)
    assert wal.segment_count < held / 2
    for _ in range(2):
        recovery = reopen(disk)
        assert (sorted(recovery.groups), recovery.tombstones) == ([1], ((7, 65_540),))
    disk.kill()
    wal, _ = open_log(disk)
    other = Creation(65_541, CONFIGURATION)
    wal.write([GroupAppend(group=7, create=other), append(7, 1, 3)])
    wal.sync()
    recovery = reopen(disk)
    assert (recovery.groups[7].create, indexes(recovery, 7)) == (other, span(1, 3))
    assert recovery.tombstones == ((7, 65_540),)
    disk.kill()
    wal, _ = open_log(disk)
    wal.write([GroupAppend(group=7, tombstone=65_541)])
    with pytest.raises(InvariantViolated, match="or that one was deleted"):
        wal.write([GroupAppend(group=7, create=other)])


def test_a_tombstone_of_another_replica_leaves_the_log_alone(disk: MemoryFileSystem) -> None:
    """Of a later replica, and of the bootstrap's, which carry their node's id. That of their own takes it along."""
    wal, _ = open_log(disk)
    made = Creation(65_540, CONFIGURATION)
    wal.write([GroupAppend(group=7, create=made), append(7, 1, 3), append(1, 1, 3)])
    wal.write([GroupAppend(group=7, tombstone=65_539), GroupAppend(group=7, tombstone=IDENTITY.node)])
    wal.write([GroupAppend(group=1, tombstone=65_538), append(7, 4, 5), append(1, 4, 5)])
    wal.sync()
    for _ in range(2):
        recovery = reopen(disk)
        assert (recovery.groups[7].create, indexes(recovery, 7), indexes(recovery, 1)) == (made, span(1, 5), span(1, 5))
        assert recovery.tombstones == ((1, 65_538), (7, IDENTITY.node), (7, 65_539))
    disk.kill()
    wal, _ = open_log(disk)
    wal.write([GroupAppend(group=7, tombstone=65_540), GroupAppend(group=1, tombstone=IDENTITY.node)])
    wal.sync()
    assert reopen(disk).groups == {}


def test_a_small_log_is_copied_whole_when_it_is_opened(disk: MemoryFileSystem) -> None:
    options = WalOptions(segment_bytes=64 << 10, reserve_bytes=32 << 10, retired_segments_max=1)
    wal, _ = open_log(disk, options)
    for index in range(1, 101):
        wal.write([append(1, index, index)])
        wal.sync()
    wal.close()
    for _ in range(10):
        disk.kill()
        wal, recovery = open_log(disk, options)
        assert indexes(recovery, 1) == span(1, 100)
        assert wal.segment_count == 1
    assert len(segment_files(disk)) <= 5


def test_incarnation_head_and_peers_are_of_this_start(disk: MemoryFileSystem) -> None:
    open_log(disk)[0].close()
    other = Identity(cluster=b"c" * 16, node=2, node_uuid=b"u" * 16)
    for wrong in (
        other,
        Identity(cluster=b"x" * 16, node=1, node_uuid=b"u" * 16),
        Identity(cluster=b"c" * 16, node=1, node_uuid=b"y" * 16),
    ):
        with pytest.raises(IdentityMismatch, match="belongs to node 1"):
            Wal.open(disk, DIRECTORY, wrong, OPTIONS)
    assert Wal.open(disk, DIRECTORY, IDENTITY, OPTIONS)[1].incarnation == 2


def test_a_payload_that_does_not_match_its_crc_ends_it(disk: MemoryFileSystem) -> None:
    wal, _ = open_log(disk)
    wal.write([append(1, 1, 1)])
    wal.sync()
    with pytest.raises(InvariantViolated, match="index 2 does not match its CRC"):
        wal.write([GroupAppend(group=1, entries=(Entry(1, 2, EntryKind.NORMAL, b"abc", 1),))])
    with pytest.raises(StorageFailed):
        wal.sync()
    assert indexes(reopen(disk), 1) == span(1, 1)


@pytest.mark.parametrize("bad", [append(1, 3, 3), append(2, 2, 2)])
def test_a_gap_ends_it(disk: MemoryFileSystem, bad: GroupAppend) -> None:
    wal, _ = open_log(disk)
    wal.write([append(1, 1, 1)])
    with pytest.raises(InvariantViolated, match="leaves a gap"):
        wal.write([bad])
    with pytest.raises(StorageFailed):
        wal.write([append(1, 2, 2)])


def test_payloads_are_written_where_they_lie(disk: MemoryFileSystem) -> None:
    """A gathered write: large payloads are not copied on the way."""
    wal, _ = open_log(disk, WalOptions(reserve_bytes=64 << 10, segment_bytes=16 << 20))
    seen: list[object] = []
    active = wal._active
    assert active is not None
    write = active.prepared.file.pwrite
    active.prepared.file.pwrite = lambda buffers, offset: (seen.extend(buffers), write(buffers, offset))[1]  # type: ignore[method-assign]
    large = entries(1, 3, size=1 << 20)
    wal.write([GroupAppend(group=1, entries=large)])
    assert all(any(each.payload is buffer for buffer in seen) for each in large)


def test_closed_takes_nothing(disk: MemoryFileSystem) -> None:
    wal, _ = open_log(disk)
    wal.close()
    wal.close()
    wal.prepare()
    for call in (lambda: wal.write([append(1, 1, 1)]), wal.sync, wal.idle):
        with pytest.raises(StorageFailed, match="closed"):
            call()


def test_options_name_all_their_problems() -> None:
    with pytest.raises(ValueError, match=r"segment_bytes is 5.*reserve_bytes.*spare_segments is -1"):
        WalOptions(segment_bytes=5, spare_segments=-1).validate()


def test_a_log_that_grows_again_makes_no_new_files(disk: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives all its segments back at once: making and zeroing as many again would cost as much as writing it."""
    made: list[str] = []
    make = SegmentPool._create

    def create(pool: SegmentPool, capacity: int, path: str) -> File:
        made.append(path)
        return make(pool, capacity, path)

    monkeypatch.setattr(SegmentPool, "_create", create)
    options = replace(OPTIONS, retired_segments_max=1)
    wal, _ = open_log(disk, options)
    counts = []
    for cycle in range(4):
        first = 400 * cycle + 1
        for index in range(first, first + 400, 10):
            wal.write([append(1, index, index + 9, size=1000)])
            wal.sync()
            wal.prepare()
        assert wal.segment_count > 5
        wal.write([install(1, first + 399)])
        wal.sync()
        wal.release(1, first + 400)
        wal.sync()
        wal.prepare()
        counts.append(len(made))
    assert counts[0] > 5
    assert counts[0] <= counts[1] <= counts[0] + 1  # it began in the middle of a segment
    assert counts[2:] == [counts[1]] * 2


def test_a_log_that_is_long_for_good_reason_is_not_rewritten(disk: MemoryFileSystem) -> None:
    """Only segments beside those that live entries fill count as too many."""
    options = replace(OPTIONS, held_segments_max=4)
    wal, _ = open_log(disk, options)
    wal.write([append(2, 1, 3)])
    for first in range(1, 161, 10):
        wal.write([append(1, first, first + 9, size=1000)])
        wal.sync()
    wal.write([install(1, 150)])
    wal.sync()
    wal.release(1, 151)  # what is left before pins a segment
    for first in range(161, 801, 10):
        wal.write([append(1, first, first + 9, size=1000)])
        wal.sync()
        wanted = wal._rewriting._wanted
        assert wanted is None or {group for group, _, _ in wanted.entries} == {2}, "next to nothing may go"
    assert wal.segment_count > 10
    wal.write([install(1, 800)])
    wal.sync()
    wal.release(1, 801)
    for turn, first in enumerate(range(801, 1161, 10), 4):
        idle = append(2, turn, turn, size=10)
        wal.write([append(1, first, first + 9, size=1000), install(1, first + 9), idle])
        wal.sync()
        wal.release(1, first + 10)
        if wal._rewriting.segment:
            return
    pytest.fail("an idle group pins the log")
