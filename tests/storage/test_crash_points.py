"""Crash at every IO call of every operation, and recover to a legal state each time (FAULTS rows 4, 5, 9).

Legal: everything a `sync` returned for is there; what else is there is a prefix of what was written; nothing else is.
"""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from consensus.core.interface import HardState, SnapshotMeta
from consensus.storage.errors import StorageFailed
from consensus.storage.interface import Creation, GroupAppend, Recovery
from consensus.storage.memory import MemoryFileSystem, PowerLost
from consensus.storage.wal import Wal
from tests.storage.logs import CONFIGURATION, OPTIONS, append, entries, install, open_log, snapshot, vote

REWRITING = replace(OPTIONS, held_segments_max=2)

State = tuple[HardState, SnapshotMeta | None, tuple[tuple[int, int], ...], Creation | None, bool]
NEW: State = (HardState(), None, (), None, False)
Groups = tuple[dict[int, State], tuple[tuple[int, int], ...]]
"""What each group holds, and the tombstones."""


class Model:
    """What the log means after each operation, and after which one it was last durable."""

    def __init__(self) -> None:
        self.states: list[Groups] = [({}, ())]
        self.durable = 0

    def wrote(self, appends: list[GroupAppend]) -> None:
        groups, tombstones = dict(self.states[-1][0]), self.states[-1][1]
        for each in appends:
            if each.tombstone:
                groups.pop(each.group, None)
                tombstones = (*tombstones, (each.group, each.tombstone))
                continue
            state, snap, log, create, forgetful = groups.get(each.group, NEW)
            if each.forget:
                state, snap, log, forgetful = replace(state, commit=0), None, (), True
            create = each.create or create
            if each.install is not None:
                snap = each.install
                kept = (snap.index, snap.term) in log
                log = tuple(entry for entry in log if kept and entry[0] > snap.index)
            if each.hard_state is not None:
                state = each.hard_state
            for entry in each.entries:
                log = (*[held for held in log if held[0] < entry.index], (entry.index, entry.term))
            groups[each.group] = (state, snap, log, create, forgetful and not each.clear_forgetful)
        self.states.append((groups, tombstones))

    def check(self, recovery: Recovery) -> None:
        assert recovery.damage == ""
        groups = recovery.groups.items()
        assert [group.damage for _, group in groups if group.damage and not group.forgetful] == []
        found = (
            {
                number: (
                    group.hard_state,
                    group.snapshot,
                    tuple((entry.index, entry.term) for entry in group.entries),
                    group.create,
                    group.forgetful,
                )
                for number, group in groups
            },
            recovery.tombstones,
        )
        legal = self.states[self.durable :]
        assert found in legal, f"durable was {legal[0]}, written was {legal[-1]}"
        del self.states[self.states.index(found) + 1 :]
        self.durable = len(self.states) - 1


Operation = Callable[[Wal, Model], None]


def write(*appends: GroupAppend) -> Operation:
    def run(wal: Wal, model: Model) -> None:
        model.wrote(list(appends))
        wal.write(appends)

    return run


def sync(wal: Wal, model: Model) -> None:
    wal.sync()
    model.durable = len(model.states) - 1


def synced(*appends: GroupAppend) -> Operation:
    def run(wal: Wal, model: Model) -> None:
        write(*appends)(wal, model)
        sync(wal, model)

    return run


def idle(wal: Wal, model: Model) -> None:
    wal.idle()
    model.durable = len(model.states) - 1


def release(group: int, below: int) -> Operation:
    return lambda wal, model: wal.release(group, below)


def filled(group: int, first: int, last: int, term: int = 1) -> list[Operation]:
    """Appends of up to ten entries each, which fill segments."""
    starts = range(first, last + 1, 10)
    return [synced(append(group, start, min(start + 9, last), term, size=1500)) for start in starts]


def busy_segments(count: int, *, idle_group: int, first: int = 1) -> list[Operation]:
    """One group fills segments and covers them by snapshots, while others stay behind: more than may be held back."""
    operations: list[Operation] = []
    for segment in range(first, first + count):
        last = segment * 40
        operations += filled(1, last - 39, last)
        operations += [synced(install(1, last)), release(1, last + 1)]
        operations += [
            synced(append(idle_group, 3 + segment - first, 3 + segment - first, size=10)),
            lambda wal, model: wal.prepare(),
        ]
    return operations


CREATE = GroupAppend(group=5, create=Creation(65_540, CONFIGURATION))

SCENARIOS: dict[str, list[Operation]] = {
    "create": [
        synced(append(1, 1, 3)),
        synced(CREATE),
        *filled(5, 1, 30),
        synced(vote(5, 2)),
        *filled(5, 31, 60),
        idle,
    ],
    "tombstone": [
        synced(CREATE, append(1, 1, 3)),
        *filled(5, 1, 40),
        synced(GroupAppend(group=5, tombstone=65_540)),
        *filled(1, 4, 40),
        idle,
        synced(GroupAppend(group=5, create=Creation(65_541, CONFIGURATION), entries=entries(1, 2))),
        *filled(1, 41, 80),
    ],
    "mark": [
        synced(vote(1, 2, 3, 0), append(2, 1, 3)),
        *filled(1, 1, 30),
        synced(install(1, 20)),
        synced(GroupAppend(group=1, forget=True)),
        *filled(1, 1, 40, 2),
        synced(GroupAppend(group=1, entries=entries(41, 42, 2), clear_forgetful=True)),
        *filled(1, 43, 80, 2),
        idle,
    ],
    "rewrite": [
        *[synced(append(group, 1, 2, size=300), vote(group, group)) for group in range(2, 5)],
        *busy_segments(4, idle_group=2),
        idle,
        *busy_segments(2, idle_group=3, first=5),
        idle,
    ],
    "append": [synced(append(1, 1, 3)), write(append(1, 4, 5)), write(append(2, 1, 2)), sync, idle],
    "hard state": [
        synced(vote(1, 1)),
        synced(vote(1, 2, 3)),
        synced(vote(1, 3), append(1, 1, 1, 3)),
        synced(vote(2, 9)),
    ],
    "truncate": [
        synced(append(1, 1, 6), append(2, 1, 3)),
        write(append(1, 3, 4, term=2)),
        sync,
        write(append(1, 2, 2, term=3)),
        write(append(1, 3, 3, term=3)),
        sync,
    ],
    "rotate": [synced(append(1, first, first + 9, size=1500)) for first in range(1, 72, 10)]
    + [synced(vote(2, 5)), idle],
    "snapshot": [synced(append(1, first, first + 9, size=1500)) for first in range(1, 72, 10)]
    + [
        synced(install(1, 60)),
        release(1, 61),
        synced(append(1, 81, 90, size=1500)),
        idle,
        synced(GroupAppend(group=1, install=snapshot(200, 4), hard_state=HardState(4))),
        release(1, 201),
        *[synced(GroupAppend(group=1, entries=entries(first, first + 9, 4, 1500))) for first in range(201, 252, 10)],
        idle,
    ],
}


def run(disk: MemoryFileSystem, model: Model, operations: list[Operation]) -> None:
    wal, recovery = open_log(disk, REWRITING)
    model.check(recovery)
    for operation in operations:
        operation(wal, model)
    wal.close()
    model.durable = len(model.states) - 1


@pytest.mark.parametrize("name", SCENARIOS)
def test_power_cut_at_every_call(name: str) -> None:
    """The n-th IO call is the last; unsynced sectors are lost, torn or there. A second cut hits the recovery."""
    for call in range(1, 10_000):
        disk, model, chance = MemoryFileSystem(), Model(), random.Random(call)
        disk.faults.stop_call = call
        try:
            run(disk, model, SCENARIOS[name])
        except PowerLost:
            pass
        fired = disk.faults.fired
        for again in (chance.randrange(1, 20), 0):
            disk.crash(chance)
            disk.faults.calls, disk.faults.stop_call = 0, again
            try:
                model.check(open_log(disk)[1])
            except PowerLost:
                pass
        if not fired:
            return
    pytest.fail("a run without a fault never came")


@pytest.mark.parametrize("name", SCENARIOS)
def test_io_error_at_every_call(name: str) -> None:
    """The n-th IO call fails: the log says so, takes nothing any more, and what it synced before is there."""
    for call in range(1, 10_000):
        disk, model = MemoryFileSystem(), Model()
        disk.faults.fail_call = call
        try:
            run(disk, model, SCENARIOS[name])
        except StorageFailed:
            pass
        if not disk.faults.fired:
            return
        disk.crash(random.Random(call), torn=bool(call % 2))
        model.check(open_log(disk)[1])
    pytest.fail("a run without a fault never came")


def test_recovered_is_durable_before_it_is_told() -> None:
    """RULES W3: read from the page cache after a kill -9, then the power goes: it must still be there."""
    for seed in range(20):
        disk = MemoryFileSystem()
        wal, _ = open_log(disk)
        wal.write([append(1, 1, 5), vote(1, 3, 2)])
        wal.sync()
        wal.write([append(1, 4, 9, term=3), vote(1, 4, 1)])
        disk.kill()
        told = open_log(disk)[1]
        disk.crash(random.Random(seed))
        assert open_log(disk)[1].groups == told.groups
        assert told.groups[1].hard_state == HardState(4, 1, 0)
        assert [entry.index for entry in told.groups[1].entries] == list(range(1, 10))


def test_entries_of_a_term_never_precede_its_hard_state() -> None:
    """HAZARDS 7: one ordered stream; also when one append is cut into several batches."""
    big = GroupAppend(group=1, hard_state=HardState(5, 2, 0), entries=entries(1, 30, 5, 5_000))
    assert sum(len(entry.payload) for entry in big.entries) > 4 * OPTIONS.flush_bytes_max
    for call in range(1, 10_000):
        disk = MemoryFileSystem()
        disk.faults.stop_call = call
        try:
            wal, _ = open_log(disk)
            wal.write([big])
            wal.sync()
        except PowerLost:
            pass
        fired = disk.faults.fired
        disk.crash(random.Random(call))
        disk.faults.stop_call = 0
        group = open_log(disk)[1].groups.get(1)
        if group is not None and group.entries:
            assert group.hard_state == big.hard_state
        if not fired:
            assert group is not None
            assert group.entries == big.entries
            return


def test_a_failed_sync_is_the_end() -> None:
    """HAZARDS 22: the kernel dropped the pages, so a second sync that succeeds means nothing."""
    disk = MemoryFileSystem()
    wal, _ = open_log(disk)
    wal.write([append(1, 1, 3)])
    wal.sync()
    wal.write([append(1, 4, 6)])
    disk.faults.fail_syncs = 1
    with pytest.raises(StorageFailed, match="syncing the log"):
        wal.sync()
    for call in (wal.sync, wal.idle, lambda: wal.write([append(1, 7, 7)]), lambda: wal.release(1, 2)):
        with pytest.raises(StorageFailed, match="takes nothing any more"):
            call()
    wal.prepare()
    wal.close()
    disk.crash(random.Random(0), torn=False)
    assert [entry.index for entry in open_log(disk)[1].groups[1].entries] == [1, 2, 3]
