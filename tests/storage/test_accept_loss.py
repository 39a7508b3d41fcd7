"""An operator names the loss of a forgetful replica, and it takes part again; nothing less makes it (RULES W7)."""

from __future__ import annotations

import random

import pytest

from consensus.core.interface import HardState
from consensus.storage import lifemark
from consensus.storage.errors import LossRefused, NoSuchGroup
from consensus.storage.interface import GroupAppend, Recovery
from consensus.storage.lastresort import accept_loss, held
from consensus.storage.memory import FaultPlan, MemoryFileSystem, PowerLost
from consensus.storage.records import Kind, find_headers
from tests.storage.logs import IDENTITY, OPTIONS, append, indexes, install, open_log, segment_files, span, vote

FOLDER = "/data"


def rot(disk: MemoryFileSystem, kind: Kind, group: int) -> None:
    """A bit of the payload of the last such record flips."""
    hits = [
        (path, header.payload_offset)
        for number, path in segment_files(disk).items()
        for header in find_headers(disk.read(path), 0, number)
        if header.kind is kind and header.group == group and header.length
    ]
    disk.flip_bit(*hits[-1])


def closed(*, kind: Kind = Kind.ENTRY) -> MemoryFileSystem:
    """Of a node that stopped clean with entries 1 to 9 of group 1 (the last of term 2) and 1 to 5 of group 2; then a
    record of group 1 rots."""
    disk = MemoryFileSystem()
    wal, _ = open_log(disk)
    wal.write([vote(1, 2, 3, commit=7), append(1, 1, 6), append(2, 1, 5), vote(2, 1)])
    wal.write([append(1, 7, 9, term=2)])
    wal.sync()
    wal.close()
    rot(disk, kind, 1)
    return disk


def accept(disk: MemoryFileSystem, keep_up_to: int, group: int = 1) -> None:
    accept_loss(disk, FOLDER, IDENTITY, group, keep_up_to, OPTIONS)


def opened(disk: MemoryFileSystem) -> Recovery:
    """The next start, on what is durable."""
    disk.faults = FaultPlan()
    disk.crash(random.Random(5))
    wal, recovery = lifemark.open_log(disk, FOLDER, IDENTITY, OPTIONS)
    wal.close()
    return recovery


@pytest.mark.parametrize("marked_before", [False, True])
def test_it_takes_part_again_with_what_it_holds(marked_before: bool) -> None:
    disk = closed()
    if marked_before:
        assert opened(disk).groups[1].forgetful
    found = held(disk, FOLDER, IDENTITY, 1)
    assert (found.last_index, found.last_term, found.term, found.vote, found.commit) == (8, 2, 2, 3, 7)
    assert bool(found.why)
    accept(disk, 8)
    recovery = opened(disk)
    assert not recovery.groups[1].forgetful
    assert recovery.groups[1].hard_state == HardState(2, 3, 7)
    assert indexes(recovery, 1) == [*span(1, 6), *span(7, 8, 2)]
    assert indexes(recovery, 2) == span(1, 5)
    with pytest.raises(LossRefused, match="not forgetful"):
        accept(disk, 8)


def test_looking_changes_nothing() -> None:
    disk = closed()
    before = {path: disk.read(path) for path in segment_files(disk).values()}
    held(disk, FOLDER, IDENTITY, 1)
    assert {path: disk.read(path) for path in segment_files(disk).values()} == before


@pytest.mark.parametrize(
    ("kind", "group", "index", "kind_of_error", "words"),
    [
        (Kind.ENTRY, 7, 8, NoSuchGroup, "it holds 1, 2"),
        (Kind.ENTRY, 2, 5, LossRefused, "not forgetful"),
        (Kind.ENTRY, 1, 9, LossRefused, "up to index 8, not 9"),
        (Kind.ENTRY, 1, 7, LossRefused, "up to index 8, not 7"),
        (Kind.HARD_STATE, 1, 9, LossRefused, "paramserver node replace"),
    ],
)
def test_refusals_change_nothing(
    kind: Kind, group: int, index: int, kind_of_error: type[LossRefused], words: str
) -> None:
    disk = closed(kind=kind)
    before = {path: disk.read(path) for path in segment_files(disk).values()}
    with pytest.raises(kind_of_error, match=words):
        accept(disk, index, group)
    assert {path: disk.read(path) for path in segment_files(disk).values()} == before


def test_a_snapshot_that_can_not_be_read_is_said_first() -> None:
    """The next start would drop it with all that is above it, and mark the replica again."""
    disk = MemoryFileSystem()
    wal, _ = open_log(disk)
    wal.write([vote(1, 1), append(1, 1, 9)])
    wal.write([install(1, 5)])
    wal.sync()
    wal.close()
    rot(disk, Kind.ENTRY, 1)
    with pytest.raises(LossRefused, match="can't be read"):
        held(disk, FOLDER, IDENTITY, 1)
    wal, _ = open_log(disk)
    wal.write([GroupAppend(group=1, forget=True)])
    wal.sync()
    wal.close()
    assert held(disk, FOLDER, IDENTITY, 1).last_index == 0
    accept(disk, 0)
    assert not opened(disk).groups[1].forgetful


def test_after_a_stop_of_the_machine_the_other_groups_stay_marked() -> None:
    """Durability `replicated`: the sign of the crash is one for all groups, and is gone once one was accepted."""
    disk = MemoryFileSystem()
    wal, _ = lifemark.open_log(disk, FOLDER, IDENTITY, OPTIONS, replicated=True)
    wal.write([vote(1, 1), vote(2, 1), append(1, 1, 4), append(2, 1, 4)])
    wal.sync()
    disk.crash(random.Random(1))
    found = held(disk, FOLDER, IDENTITY, 1)
    assert "machine stopped" in found.why
    accept(disk, 4)
    recovery = opened(disk)
    assert not recovery.groups[1].forgetful
    assert recovery.groups[2].forgetful


def test_whenever_the_machine_stops_it_is_forgetful_or_as_accepted() -> None:
    """At every step of it: never another state, and accepted once the command returned."""
    ended = set()
    for step in range(1, 200):
        disk = closed()
        disk.faults = FaultPlan(stop_call=step)
        try:
            accept(disk, 8)
        except PowerLost:
            done = False
        else:
            done = True
        recovery = opened(disk)
        assert indexes(recovery, 1) == [*span(1, 6), *span(7, 8, 2)]
        assert recovery.groups[1].hard_state == HardState(2, 3, 7)
        assert not (done and recovery.groups[1].forgetful)
        ended.add((done, recovery.groups[1].forgetful))
        if done:
            break
    assert (False, True) in ended
    assert (True, False) in ended
