"""A tombstone ends the log of the replica that it names, and of no other, whatever rotted before it or after it: a log
that goes by mistake lets a replica that voted begin again with nothing (RULES W7, I1)."""

from consensus.core.interface import HardState
from consensus.storage.interface import Creation, GroupAppend
from consensus.storage.memory import MemoryFileSystem
from consensus.storage.records import Kind, find_headers
from consensus.storage.wal import Wal
from tests.storage.logs import CONFIGURATION, IDENTITY, append, indexes, install, open_log, reopen, span, vote
from tests.storage.test_damage import active_path, number_of

MADE = 65_540
"""By an order; another than any that a tombstone of another names."""


def rot(disk: MemoryFileSystem, path: str, kind: Kind) -> None:
    """A bit of the first record of that kind flips."""
    hit = next(header for header in find_headers(disk.read(path), 0, number_of(path)) if header.kind is kind)
    disk.flip_bit(path, hit.payload_offset)


def bootstrapped(disk: MemoryFileSystem) -> Wal:
    """A replica of the bootstrap in group 1: term 9, five entries."""
    wal, _ = open_log(disk)
    wal.write([vote(1, 9, 2), append(1, 1, 5, term=9)])
    return wal


def made(disk: MemoryFileSystem) -> Wal:
    """Replica MADE of group 7: term 9, five entries."""
    wal, _ = open_log(disk)
    wal.write([GroupAppend(group=7, create=Creation(MADE, CONFIGURATION))])
    wal.write([vote(7, 9, 2), append(7, 1, 5, term=9)])
    return wal


def test_a_vote_that_rots_before_a_tombstone_of_another_is_a_lost_vote() -> None:
    disk = MemoryFileSystem()
    wal = bootstrapped(disk)
    wal.write([GroupAppend(group=1, tombstone=MADE)])
    wal.idle()
    rot(disk, active_path(wal), Kind.HARD_STATE)
    for _ in range(2):
        assert reopen(disk).groups[1].hard_state_lost


def test_entries_do_not_go_with_a_vote_that_was_told_again() -> None:
    disk = MemoryFileSystem()
    wal = bootstrapped(disk)
    wal.write([GroupAppend(group=1, tombstone=MADE)])
    wal.write([vote(1, 10, 3)])
    wal.idle()
    rot(disk, active_path(wal), Kind.HARD_STATE)
    group = reopen(disk).groups[1]
    assert group.hard_state == HardState(10, 3, 0)
    assert indexes(reopen(disk), 1) == span(1, 5, 9)


def test_a_table_that_tells_the_vote_again_leaves_nothing_to_doubt() -> None:
    disk = MemoryFileSystem()
    wal = bootstrapped(disk)
    wal.write([GroupAppend(group=1, tombstone=MADE)])
    wal.idle()
    path = active_path(wal)
    disk.kill()
    open_log(disk)[0].close()
    rot(disk, path, Kind.HARD_STATE)
    assert reopen(disk).groups[1].damage == ""


def test_a_log_that_lost_its_vote_stays_when_another_replica_is_buried() -> None:
    """The mark was durable before the tombstone came."""
    disk = MemoryFileSystem()
    wal = bootstrapped(disk)
    wal.idle()
    rot(disk, active_path(wal), Kind.HARD_STATE)
    disk.kill()
    wal, recovery = open_log(disk)
    assert recovery.groups[1].hard_state_lost
    wal.write([GroupAppend(group=1, tombstone=MADE)])
    wal.sync()
    assert reopen(disk).groups[1].hard_state_lost


def test_a_log_whose_creation_rotted_stays_when_another_replica_is_buried() -> None:
    disk = MemoryFileSystem()
    wal = made(disk)
    wal.write([GroupAppend(group=7, tombstone=MADE - 1)])
    wal.write([append(7, 6, 8, term=9)])
    wal.idle()
    rot(disk, active_path(wal), Kind.CREATE)
    for _ in range(2):
        assert reopen(disk).groups[7].hard_state_lost


def test_a_log_whose_creation_rotted_goes_with_its_own_tombstone() -> None:
    disk = MemoryFileSystem()
    wal = made(disk)
    wal.write([GroupAppend(group=7, tombstone=MADE)])
    wal.idle()
    rot(disk, active_path(wal), Kind.CREATE)
    recovery = reopen(disk)
    assert (recovery.groups, recovery.tombstones) == ({}, ((7, MADE),))


def test_a_second_replica_whose_creation_rotted_is_not_taken_for_the_first() -> None:
    disk = MemoryFileSystem()
    wal = bootstrapped(disk)
    wal.write([GroupAppend(group=1, tombstone=IDENTITY.node)])
    wal.write([GroupAppend(group=1, create=Creation(MADE, CONFIGURATION)), append(1, 1, 2, term=9)])
    wal.write([GroupAppend(group=1, tombstone=MADE + 1)])
    wal.idle()
    rot(disk, active_path(wal), Kind.CREATE)
    assert reopen(disk).groups[1].hard_state_lost


def test_rotten_tombstones_bury_whom_they_named() -> None:
    disk = MemoryFileSystem()
    wal, _ = open_log(disk)
    wal.write([GroupAppend(group=7, create=Creation(MADE, CONFIGURATION)), append(7, 1, 3)])
    wal.write([GroupAppend(group=7, tombstone=MADE - 1), GroupAppend(group=7, tombstone=IDENTITY.node)])
    wal.idle()
    path = active_path(wal)
    for header in find_headers(disk.read(path), 0, number_of(path)):
        if header.kind is Kind.TOMBSTONE:
            disk.flip_bit(path, header.offset + 20)
    recovery = reopen(disk)
    assert indexes(recovery, 7) == span(1, 3)
    assert recovery.tombstones == ((7, IDENTITY.node), (7, MADE - 1))


def test_many_tombstones_of_others_outlive_segments_and_leave_logs_alone() -> None:
    disk = MemoryFileSystem()
    wal, _ = open_log(disk)
    wal.write([GroupAppend(group=7, create=Creation(MADE, CONFIGURATION))])
    buried = set()
    for first in range(1, 400, 20):
        last = first + 19
        wal.write([append(7, first, last, size=900), vote(7, first), append(1, first, last, size=900)])
        wal.sync()
        if first % 100 == 61:
            wal.write([install(7, first + 10), install(1, first + 10)])
            wal.write([GroupAppend(group=group, tombstone=MADE + first) for group in (1, 7)])
            buried |= {(group, MADE + first) for group in (1, 7)}
            wal.sync()
            wal.release(7, first + 11)
            wal.release(1, first + 11)
    for _ in range(2):
        recovery = reopen(disk)
        assert [indexes(recovery, group)[-1] for group in (1, 7)] == [(400, 1), (400, 1)]
        assert set(recovery.tombstones) == buried
