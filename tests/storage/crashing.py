"""What the log is told in the crash-point tests, operation by operation, and what must be found of it afterwards.

Legal: everything a `sync` returned for is there; what else is there is a prefix of what was written; nothing else is.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from consensus.core.interface import EntryKind, HardState, SnapshotMeta
from consensus.storage.errors import StorageFull
from consensus.storage.interface import Creation, GroupAppend, Recovery
from consensus.storage.memory import MemoryFileSystem
from consensus.storage.wal import Wal
from tests.storage.logs import (
    CONFIGURATION,
    IDENTITY,
    OPTIONS,
    append,
    entries,
    entry,
    install,
    open_log,
    snapshot,
    vote,
)

REWRITING = replace(OPTIONS, held_segments_max=2)

State = tuple[HardState, SnapshotMeta | None, tuple[tuple[int, int], ...], Creation | None, bool]
NEW: State = (HardState(), None, (), None, False)
Groups = tuple[dict[int, State], tuple[tuple[int, int], ...]]
"""What each group holds, and the tombstones."""


class Model:
    """What the log means after each operation, and after which one it was last durable."""

    def __init__(self, disk: MemoryFileSystem) -> None:
        self.disk = disk
        self.states: list[Groups] = [({}, ())]
        self.durable = 0

    def wrote(self, appends: list[GroupAppend]) -> None:
        groups, tombstones = dict(self.states[-1][0]), self.states[-1][1]
        for each in appends:
            if each.tombstone:
                create = groups.get(each.group, NEW)[3]
                if each.tombstone == (create.replica if create is not None else IDENTITY.node):
                    groups.pop(each.group, None)
                tombstones = tuple(sorted((*tombstones, (each.group, each.tombstone))))
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
            for new in each.entries:
                log = (*[held for held in log if held[0] < new.index], (new.index, new.term))
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


def unless_full(group: int, count: int, term: int = 1) -> Operation:
    """Append so many entries; what finds no space was not written at all."""

    def run(wal: Wal, model: Model) -> None:
        _, snap, log, _, _ = model.states[-1][0].get(group, NEW)
        last = log[-1][0] if log else snap.index if snap is not None else 0
        try:
            synced(append(group, last + 1, last + count, term, 1500))(wal, model)
        except StorageFull:
            model.states.pop()

    return run


def space(free_bytes: int) -> Operation:
    """So much is left on the disk from here on."""

    def run(_: Wal, model: Model) -> None:
        model.disk.faults.capacity_bytes = model.disk.used_bytes() + free_bytes

    return run


def prepare(wal: Wal, model: Model) -> None:
    wal.prepare()


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
            prepare,
        ]
    return operations


CREATE = GroupAppend(group=5, create=Creation(65_540, CONFIGURATION))


def recycling(turns: int) -> list[Operation]:
    """A group whose log is covered by snapshots again and again, so that few files serve for ever, beside the vote of
    another one."""
    operations: list[Operation] = []
    for turn in range(turns):
        last = (turn + 1) * 30
        kept = 5 * (turn % 2)
        operations += [*filled(1, last - 29, last), synced(vote(2, turn + 8, 3), install(1, last - kept))]
        operations += [release(1, last - kept + 1), idle]
    return operations


def no_op(group: int, index: int, term: int) -> GroupAppend:
    return GroupAppend(group=group, entries=(entry(index, term, kind=EntryKind.NOOP),))


SCENARIOS: dict[str, list[Operation]] = {
    "recycle": [synced(vote(2, 7, 3)), synced(append(2, 1, 2)), *recycling(6)],
    "compact": [
        *filled(1, 1, 40),
        release(1, 15),
        *filled(1, 41, 80),
        write(install(1, 20)),
        release(1, 21),
        synced(append(1, 81, 85)),
        release(1, 21),
        *filled(1, 86, 115),
        synced(install(1, 110), vote(1, 2)),
        release(1, 100),
        release(1, 111),
        *filled(1, 116, 155),
        idle,
    ],
    "reserve": [
        *filled(1, 1, 10),
        synced(vote(2, 1)),
        space(1000),
        *[unless_full(2, count) for count in (10, 10, 10, 45, 10, 10, 10, 10)],
        *[synced(vote(1, term, 2), vote(2, term, 3)) for term in range(2, 6)],
        synced(no_op(1, 11, 5)),
        unless_full(1, 20, 5),
        synced(vote(2, 6, 1)),
        idle,
        space(1 << 20),
        prepare,
        synced(vote(2, 7, 1)),
        *[unless_full(1, 10, 5) for _ in range(5)],
        idle,
    ],
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
        synced(GroupAppend(group=5, tombstone=65_539), GroupAppend(group=1, tombstone=65_540), append(5, 41, 42)),
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


class CountingDisk(MemoryFileSystem):
    """Knows how often each call came."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def stops(self, what: str, path: str) -> bool:
        self.counts[what] += 1
        return super().stops(what, path)


def run(model: Model, operations: list[Operation]) -> None:
    disk = model.disk
    wal, recovery = open_log(disk, REWRITING)
    model.check(recovery)
    for operation in operations:
        operation(wal, model)
    wal.close()
    model.durable = len(model.states) - 1
