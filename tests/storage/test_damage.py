"""Bytes that rot, tails that tear, records of another life: told apart, and never taken for what they are not.

FAULTS rows 6 and 7, RULES W1, W2, W7; HAZARDS 23 and 40.
"""

import random
from dataclasses import replace

import pytest

from consensus.core.interface import Configuration, HardState
from consensus.storage.errors import LogLost, UnknownFormat
from consensus.storage.interface import Creation, GroupAppend, Recovery
from consensus.storage.memory import MemoryFileSystem
from consensus.storage.records import HEADER_BYTES, Kind, find_headers
from consensus.storage.wal import Wal
from tests.storage.logs import (
    OPTIONS,
    append,
    entries,
    indexes,
    install,
    open_log,
    reopen,
    segment_files,
    snapshot,
    span,
    vote,
)

KEEP = replace(OPTIONS, spare_segments=2)


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
                assert recovery.warnings or recovery is not first, "the first start moves what is left elsewhere"
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
    assert not recovery.groups[1].forgetful
    assert recovery.groups[2].forgetful
    assert not recovery.groups[2].hard_state_lost
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
    assert again.groups[2].forgetful
    assert "marked by an earlier start" in again.groups[2].damage
    assert indexes(again, 2) == span(1, 4)
    assert not again.warnings, "what was left of the damaged segment lies in a new one; the old one is released"


def test_the_mark_is_durable_before_anything_else() -> None:
    """RULES W7: by the time the host hears of damage, no crash makes it unsaid: after the entries that were left are
    written again, nothing else in the log tells that some were lost."""
    disk, path, ends = three_batches()
    hit = next(each for each in find_headers(disk.read(path), ends[1], number_of(path)) if each.kind is Kind.ENTRY)
    disk.flip_bit(path, hit.payload_offset)
    disk.kill()
    first = open_log(disk)[1]
    assert first.groups[hit.group].forgetful
    disk.crash(random.Random(5))
    again = open_log(disk)[1]
    assert again.groups[hit.group].forgetful
    assert again.groups[hit.group].entries == first.groups[hit.group].entries
    assert again.groups[hit.group].hard_state == first.groups[hit.group].hard_state


def test_a_refilled_group_is_whole_again() -> None:
    disk, path, ends = three_batches()
    hit = next(each for each in find_headers(disk.read(path), ends[0], number_of(path)) if each.group == 2)
    disk.flip_bit(path, hit.payload_offset)
    disk.kill()
    wal, recovery = open_log(disk)
    assert (recovery.groups[2].forgetful, recovery.groups[2].entries) == (True, ())
    wal.write([append(2, 1, 12)])
    wal.sync()
    assert reopen(disk).groups[2].forgetful, "refilled, but no leader has said up to where"
    disk.kill()
    wal, _ = open_log(disk)
    wal.write([GroupAppend(group=2, entries=entries(13, 13), clear_forgetful=True)])
    wal.sync()
    group = reopen(disk).groups[2]
    assert (group.forgetful, group.damage, indexes(reopen(disk), 2)) == (False, "", span(1, 13))


def test_a_group_whose_snapshot_cannot_be_read_is_emptied_and_marked() -> None:
    disk = MemoryFileSystem()
    wal, _ = open_log(disk)
    wal.write([append(1, 1, 9), vote(1, 4, 2, 8), append(2, 1, 9)])
    wal.write([install(1, 7)])
    wal.sync()
    wal.write([GroupAppend(group=1, forget=True)])
    wal.sync()
    for _ in range(3):
        group = reopen(disk).groups[1]
        assert (group.forgetful, group.hard_state_lost, group.snapshot, group.entries) == (True, False, None, ())
        assert group.hard_state == HardState(4, 2, 0)
    disk.kill()
    wal, _ = open_log(disk)
    wal.write([append(1, 1, 3, term=4)])
    wal.write([GroupAppend(group=1, install=snapshot(8, 4), entries=entries(9, 11, 4), clear_forgetful=True)])
    wal.sync()
    recovery = reopen(disk)
    assert recovery.groups[1].snapshot == snapshot(8, 4)
    assert (recovery.groups[1].damage, indexes(recovery, 1)) == ("", span(9, 11, 4))


def test_a_lost_snapshot_record_leaves_nothing_but_term_and_vote() -> None:
    """What stood in the log before a snapshot of the leader's was installed is joined by nothing that came after."""
    disk = MemoryFileSystem()
    wal, _ = open_log(disk)
    wal.write([append(1, 1, 20)])
    wal.sync()
    wal.write([GroupAppend(group=1, install=snapshot(10, 3), hard_state=HardState(3, 0, 10))])
    wal.sync()
    wal.write([GroupAppend(group=1, entries=entries(11, 14, 3))])
    wal.idle()
    path = active_path(wal)
    hit = next(each for each in find_headers(disk.read(path), 0, number_of(path)) if each.kind is Kind.SNAPSHOT)
    disk.flip_bit(path, hit.payload_offset)
    for _ in range(2):
        group = reopen(disk).groups[1]
        assert (group.forgetful, group.hard_state_lost, group.snapshot, group.entries) == (True, False, None, ())
        assert group.hard_state == HardState(3, 0, 0)


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
        group = open_log(disk)[1].groups[1]
        assert group.forgetful
        assert group.hard_state_lost
        assert "it must not run under its old id: its replica must be replaced" in group.damage


def test_what_an_unreadable_batch_held_is_lost_for_every_group_that_it_may_have_held() -> None:
    """RULES W7: batch and index are bad. A vote that was written later is proof of a vote, no entry is of entries: what
    was lost may have superseded what came before."""
    disk, path, ends = three_batches()
    disk.overwrite(path, bytes(ends[2] - ends[1]), ends[1])
    disk.kill()
    wal, recovery = open_log(disk)
    assert "any group may be hit" in recovery.damage
    assert "every replica of this node must be replaced" in recovery.damage
    assert {number: group.forgetful for number, group in recovery.groups.items()} == {1: True, 2: True}
    assert state(recovery) == {1: (HardState(3, 1), span(1, 3)), 2: (HardState(), span(1, 3))}
    assert {number: group.hard_state_lost for number, group in recovery.groups.items()} == {1: False, 2: True}
    wal.write([append(1, 4, 6)])
    wal.close()
    again = reopen(disk)
    assert again.damage, "a group that never shows up in the log may still have voted in what was lost"
    assert {number: group.forgetful for number, group in again.groups.items()} == {1: True, 2: True}
    assert again.groups[2].hard_state_lost


def test_a_group_first_met_behind_an_unreadable_batch_may_have_voted_in_it() -> None:
    """Its first term and vote were in that batch, and nothing before it names the group (simulated seed 550696). One
    that was made behind it lost nothing."""
    disk = MemoryFileSystem()
    wal, _ = open_log(disk)
    wal.write([append(2, 1, 1)])
    wal.sync()
    assert wal._active is not None
    start = wal._active.end
    wal.write([vote(1, 1, 1), append(1, 1, 1)])
    wal.sync()
    end = wal._active.end
    wal.write([append(1, 2, 2), GroupAppend(group=3, create=Creation(65536, Configuration((65536,))))])
    wal.write([append(3, 1, 1)])
    wal.idle()
    disk.overwrite(active_path(wal), bytes(end - start), start)
    recovery = reopen(disk)
    assert {number: group.hard_state_lost for number, group in recovery.groups.items()} == {1: True, 2: True, 3: False}
    assert recovery.groups[1].forgetful
    assert not recovery.groups[3].forgetful


def test_entries_behind_an_unreadable_batch_are_not_joined_to_those_before() -> None:
    """The lost batch superseded entry 3; entry 4 of the new term must not follow the old one."""
    disk = MemoryFileSystem()
    wal, _ = open_log(disk)
    wal.write([append(1, 1, 3), vote(1, 1)])
    wal.sync()
    assert wal._active is not None
    start = wal._active.end
    wal.write([append(1, 3, 3, term=2), vote(1, 2)])
    wal.sync()
    end = wal._active.end
    wal.write([append(1, 4, 4, term=2), vote(1, 2, 0, 4)])
    wal.idle()
    disk.overwrite(active_path(wal), bytes(end - start), start)
    recovery = reopen(disk)
    assert indexes(recovery, 1) == span(1, 3)
    assert recovery.groups[1].forgetful
    assert recovery.groups[1].hard_state == HardState(2, 0, 3)


def test_a_later_table_proves_what_was_not_lost() -> None:
    """An unreadable batch of an older segment: the newest table lists every group and what it holds."""
    disk = MemoryFileSystem()
    wal, _ = open_log(disk)
    wal.write([append(1, 1, 5, size=5_000), vote(1, 1)])
    wal.sync()
    assert wal._active is not None
    path, start = active_path(wal), wal._active.end
    wal.write([append(1, 6, 7), vote(2, 5, 3)])
    wal.sync()
    end = wal._active.end
    for first in range(8, 60, 10):
        wal.write([append(1, first, first + 9, size=1_500)])
        wal.sync()
    assert active_path(wal) != path
    disk.overwrite(path, bytes(end - start), start)
    recovery = reopen(disk)
    assert recovery.damage == ""
    assert (recovery.groups[2].damage, recovery.groups[2].hard_state) == ("", HardState(5, 3))
    assert (recovery.groups[1].forgetful, recovery.groups[1].hard_state_lost) == (True, False)
    assert indexes(recovery, 1) == span(1, 5)


def test_one_bad_place_never_costs_the_table() -> None:
    """The head is written twice: a flip anywhere in a segment's first batch loses no vote."""
    disk, _, _ = three_batches()
    disk.kill()
    wal, _ = open_log(disk)
    path = active_path(wal)
    assert wal._active is not None
    end = wal._active.end
    wal.idle()
    wal.write([vote(3, 1)])
    wal.sync()
    for offset in range(0, end, 61):
        rotten = copy_of(disk)
        rotten.flip_bit(path, offset, offset % 8)
        recovery = open_log(rotten)[1]
        assert recovery.damage == ""
        assert not any(group.hard_state_lost for group in recovery.groups.values())
        assert {number: group.hard_state for number, group in recovery.groups.items()} == {
            1: HardState(3, 1),
            2: HardState(),
            3: HardState(1, 1),
        }


def test_a_log_without_any_head_is_refused() -> None:
    disk, path, _ = three_batches()
    disk.overwrite(path, bytes(4096))
    disk.kill()
    before = disk.read(path)
    with pytest.raises(LogLost, match="paramserver node replace"):
        open_log(disk)
    assert disk.read(path) == before


def test_a_segment_whose_tables_are_lost_counts_for_every_group() -> None:
    disk, _, _ = three_batches()
    disk.kill()
    wal, _ = open_log(disk, KEEP)
    assert wal._active is not None
    end = wal._active.end
    wal.write([append(1, 10, 12)])
    wal.sync()
    wal.write([append(1, 13, 13)])
    wal.sync()
    disk.overwrite(active_path(wal), bytes(end))
    disk.kill()
    recovery = open_log(disk, KEEP)[1]
    assert recovery.damage
    assert all(group.hard_state_lost for group in recovery.groups.values())
    assert recovery.groups


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
    monkeypatch.setattr("consensus.storage.records.FORMAT_VERSION", 9)
    open_log(disk)[0].close()
    monkeypatch.undo()
    before = {path: disk.read(path) for path in segment_files(disk).values()}
    with pytest.raises(UnknownFormat, match="version 9"):
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
