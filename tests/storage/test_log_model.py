"""Random histories against a model in a few lines: whatever is appended, superseded, covered by snapshots, released,
torn by crashes and read again, the log says what the model says; and what it was left, it gives back while it runs."""

import random
from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from consensus.core.interface import HardState, SnapshotMeta
from consensus.core.raft.log import size_of
from consensus.storage.interface import GroupAppend
from consensus.storage.memory import MemoryFileSystem
from consensus.storage.options import WalOptions
from consensus.storage.wal import Wal
from tests.storage.logs import DIRECTORY, IDENTITY, entries, snapshot

GROUPS = st.integers(0, 2)


@dataclass(frozen=True)
class Group:
    """What one group's log should be: (index, term, size) of the entries above the snapshot."""

    hard_state: HardState = field(default_factory=HardState)
    snapshot: SnapshotMeta | None = None
    log: tuple[tuple[int, int, int], ...] = ()

    @property
    def base(self) -> int:
        return self.snapshot.index if self.snapshot is not None else 0

    @property
    def last(self) -> int:
        return self.log[-1][0] if self.log else self.base


@dataclass
class Model:
    groups: dict[int, Group] = field(default_factory=dict)

    def get(self, group: int) -> Group:
        return self.groups.get(group, Group())


class LogMachine(RuleBasedStateMachine):
    @initialize(
        segment=st.sampled_from([16, 32, 128]),
        flush=st.sampled_from([2_000, 50_000]),
        copy=st.sampled_from([0, 4_000, 1 << 20]),
        spares=st.integers(0, 2),
        held=st.sampled_from([0, 2, 8]),
        handed_over=st.sampled_from([0, 5_000, 4 << 20]),
    )
    def start(self, segment: int, flush: int, copy: int, spares: int, held: int, handed_over: int) -> None:
        self.options = WalOptions(
            segment_bytes=segment << 10,
            reserve_bytes=16 << 10,
            flush_bytes_max=flush,
            open_copy_bytes_max=copy,
            spare_segments=spares,
            held_segments_max=held,
            retired_segments_max=1,
            recovered_bytes_max=handed_over,
        )
        self.disk = MemoryFileSystem()
        self.now = Model()
        self.history = [Model()]
        self.incarnation = 0
        self.open()

    def open(self) -> None:
        self.wal, recovery = Wal.open(self.disk, DIRECTORY, IDENTITY, self.options)
        assert recovery.damage == ""
        assert recovery.warnings == ()
        assert recovery.incarnation > self.incarnation
        self.incarnation = recovery.incarnation
        self.gone: dict[int, set[tuple[int, int, int]]] = {}
        found = {}
        for number, group in recovery.groups.items():
            assert group.damage == ""
            log = tuple((entry.index, entry.term, size_of(entry)) for entry in group.entries)
            assert sum(len(entry.payload) for entry in group.entries) <= self.options.recovered_bytes_max
            whole = self.wal.load(number, group.entries)
            assert whole == tuple(entries(index, index, term, size)[0] for index, term, size in log)
            found[number] = Group(group.hard_state, group.snapshot, log)
        assert found in [model.groups for model in self.history]
        self.now = Model(found)
        self.history = [Model(dict(found))]

    def write(self, appends: list[GroupAppend]) -> None:
        """Batches may be cut, so every state between two records is legal after a crash."""
        for append in appends:
            group = self.now.get(append.group)
            if append.install is not None:
                meta = append.install
                held = any((index, term) == (meta.index, meta.term) for index, term, _ in group.log)
                log = tuple(entry for entry in group.log if held and entry[0] > meta.index)
                group = self.step(append.group, Group(group.hard_state, meta, log))
            if append.hard_state is not None:
                group = self.step(append.group, Group(append.hard_state, group.snapshot, group.log))
            for entry in append.entries:
                kept = tuple(held for held in group.log if held[0] < entry.index)
                log = (*kept, (entry.index, entry.term, len(entry.payload)))
                group = self.step(append.group, Group(group.hard_state, group.snapshot, log))
        self.wal.write(appends)

    def step(self, number: int, group: Group) -> Group:
        self.gone.setdefault(number, set()).update(set(self.now.get(number).log) - set(group.log))
        self.now.groups[number] = group
        self.history.append(Model(dict(self.now.groups)))
        return group

    @rule(group=GROUPS, count=st.integers(1, 8), size=st.sampled_from([0, 10, 3_000, 20_000]), vote=st.booleans())
    def append(self, group: int, count: int, size: int, vote: bool) -> None:
        now = self.now.get(group)
        term = max(now.hard_state.term, now.log[-1][1] if now.log else 0, now.snapshot.term if now.snapshot else 0, 1)
        state = HardState(term, group, now.base) if vote else None
        new = entries(now.last + 1, now.last + count, term, size)
        self.write([GroupAppend(group=group, hard_state=state, entries=new)])

    @rule(group=GROUPS, back=st.integers(1, 6), count=st.integers(1, 5), other=GROUPS)
    def supersede(self, group: int, back: int, count: int, other: int) -> None:
        now = self.now.get(group)
        term = max(now.hard_state.term, now.log[-1][1] if now.log else 0, now.snapshot.term if now.snapshot else 0) + 1
        first = max(now.last + 1 - back, now.base + 1)
        new = entries(first, first + count - 1, term, 50)
        state = HardState(self.now.get(other).hard_state.term + 1, 3, 0)
        both = [GroupAppend(group=group, hard_state=HardState(term), entries=new)]
        self.write(both if other == group else [GroupAppend(group=other, hard_state=state), *both])

    @precondition(lambda self: any(group.log for group in self.now.groups.values()))
    @rule(data=st.data())
    def take_snapshot(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from([number for number, group in self.now.groups.items() if group.log]))
        index, term, _ = data.draw(st.sampled_from(self.now.get(number).log))
        self.write([GroupAppend(group=number, install=snapshot(index, term))])

    @rule(group=GROUPS, ahead=st.integers(0, 20))
    def install_foreign_snapshot(self, group: int, ahead: int) -> None:
        now = self.now.get(group)
        term = max(now.hard_state.term, now.log[-1][1] if now.log else 0, now.snapshot.term if now.snapshot else 0) + 1
        self.write([GroupAppend(group=group, install=snapshot(now.base + ahead + 1, term), hard_state=HardState(term))])

    @precondition(lambda self: any(group.base > 1 for group in self.now.groups.values()))
    @rule(data=st.data())
    def record_an_overtaken_snapshot(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from([number for number, group in self.now.groups.items() if group.base > 1]))
        self.wal.write([GroupAppend(group=number, install=snapshot(self.now.get(number).base - 1))])

    @rule(group=GROUPS, below=st.integers(0, 100))
    def release(self, group: int, below: int) -> None:
        self.wal.release(group, below)

    @rule()
    def sync(self) -> None:
        self.wal.sync()
        self.history = self.history[-1:]

    @rule()
    def prepare(self) -> None:
        self.wal.prepare()

    @rule()
    def idle(self) -> None:
        self.wal.idle()
        self.history = self.history[-1:]

    @rule()
    def kill(self) -> None:
        self.disk.kill()
        self.history = self.history[-1:]
        self.open()

    @rule(seed=st.integers(0, 1000), torn=st.booleans())
    def cut_power(self, seed: int, torn: bool) -> None:
        self.disk.crash(random.Random(seed), torn)
        self.open()

    @rule()
    def close(self) -> None:
        self.wal.close()
        self.history = self.history[-1:]
        self.open()

    @invariant()
    def what_stands_in_it_can_be_read_back_and_nothing_else(self) -> None:
        for number, group in self.now.groups.items():
            some = (*group.log[:2], *group.log[2:][-3:])
            log = tuple(entries(index, index, term, size)[0] for index, term, size in some)
            assert self.wal.load(number, [entry.left_out() for entry in log]) == log
            for index, term, size in sorted(self.gone.get(number, ()))[-3:]:
                if size and index > group.base and (index, term, size) not in group.log:
                    assert self.wal.load(number, [entries(index, index, term, size)[0].left_out()]) is None

    @invariant()
    def the_log_does_not_grow_for_nothing(self) -> None:
        assert self.wal.segment_count < 200


LogMachine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
TestLogAgainstModel = LogMachine.TestCase
