"""Ranks that follow the rules, under random schedules of everything that may happen to them and their leader.

Leaders come and go and their commands are committed or lost, streams break, ranks die and come back under a new view,
the lanes run late. Afterwards all heals, every rank finishes, and the weights are the faultless run's, bit by bit (P4).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from consensus.core.interface import Entry, EntryKind
from consensus.runtime.interface import Applied, Outcome, Unknown
from paramserver.shard.commands import SetView
from paramserver.shard.options import LeaderOptions
from paramserver.wire.errors import Reason, Refusal
from paramserver.wire.frames import BlockFrame, BlockStatus, PushFrame
from paramserver.wire.layout import Flat
from paramserver.wire.protos import View
from paramserver.wire.spec import ModelSpec, adam
from tests.unit.shard.kit import (
    MODEL,
    Log,
    Node,
    Rank,
    as_entry,
    expected_weights,
    hello,
    model_spec,
    opening_commands,
    same_bits,
)

STEPS, BLOCKS, NODES = 6, 5, 3


class Group:
    """A log with one leader at a time. What a deposed leader appended is committed up to a random point."""

    def __init__(self, rng: random.Random, spec: ModelSpec) -> None:
        self.rng, self.spec, self.term = rng, spec, 0
        self.log = Log()
        self.log.add(*opening_commands(spec))
        self.view = View(1, 0, (1,) * spec.ranks)
        self.pending: list[tuple[Any, int, Callable[[Outcome], None]]] = []
        self.unheard: dict[int, list[Applied]] = {}
        self.nodes = [Node(self.log, number, options=LeaderOptions(window_blocks=2)) for number in range(1, NODES + 1)]
        for node in self.nodes:
            node.lane.at_once = False
            node.leader._propose = lambda payload, crc, done: self.pending.append((payload, crc, done))
            self.unheard[node.replica] = []
        self.leader: Node | None = None
        self.behind = False
        self._expected: dict[tuple[int, int], Flat] = {}

    def expected(self, block: int, version: int) -> Flat:
        if (block, version) not in self._expected:
            self._expected[block, version] = expected_weights(self.spec, block, version)
        return self._expected[block, version]

    def commit(self, count: int) -> None:
        for payload, crc, _ in self.pending[:count]:
            self.log.committed.append(Entry(1, len(self.log.committed) + 1, EntryKind.NORMAL, payload, crc))
        del self.pending[:count]

    def set_view(self, view: View) -> None:
        """Goes through the leader's log like any command: behind what is appended already."""
        entry = as_entry(SetView(model=MODEL, generation=1, view=view))
        self.pending.append((entry.payload, entry.crc, lambda outcome: None))
        self.view = view

    def apply(self, node: Node, count: int) -> None:
        """The lane applies; the listener hears of it some other time."""
        for entry in self.log.committed[node.applied : node.applied + count]:
            self.unheard[node.replica].append(Applied(1, entry.index, node.machine.apply(entry)))
            node.applied += 1

    def hear(self, node: Node) -> None:
        batch, self.unheard[node.replica] = self.unheard[node.replica], []
        node.leader.applied(batch)

    def elect(self, node: Node) -> None:
        if self.leader is not None:
            views = [item for item in self.pending if bytes(item[0][:1]) == b"\x10"]
            self.commit(self.rng.randint(0, len(self.pending)))
            dropped, self.pending = self.pending, [item for item in self.pending if item in views]
            for _, _, done in dropped:
                done(Unknown(self.term, 0))
            self.leader.leader.deposed(self.term + 1)
        self.term += 1
        for other in self.nodes:
            other.leader.leader_changed(node.replica, self.term)
        self.leader = node
        self.behind = True

    def ready(self) -> None:
        """The new leader's no-op is applied, and so is everything before it."""
        if self.leader is not None and self.behind:
            self.behind = False
            self.apply(self.leader, len(self.log.committed))
            self.hear(self.leader)
            self.leader.leader.leading(self.term)


class Worker:
    """One rank as RULES S5 to S9 want it."""

    def __init__(self, group: Group, rank: int) -> None:
        self.group, self.rank, self.step, self.epoch = group, rank, 0, 1
        self.acknowledged: set[int] = set()
        self.stream: Any = None
        self.next_block = 0
        self.admitted = True
        self.acknowledgements = 0

    def open(self) -> None:
        node = self.group.leader
        if node is None or self.stream is not None or self.step >= STEPS:
            return
        fields = {"view": self.group.view.number, "lease_epoch": self.epoch, "want_weights": False}
        sink = _Sink(self)
        self.next_block, self.admitted = 0, True
        try:
            self.stream = node.leader.open_stream(hello(self.rank, **fields), sink)
            sink.stream = self.stream
        except Refusal as refusal:
            if not refusal.retryable:
                raise

    def send(self) -> None:
        while self.next_block in self.acknowledged:
            self.next_block += 1
        if self.stream is None or not self.admitted or self.step >= STEPS or self.next_block >= BLOCKS:
            return
        frame: PushFrame = Rank.frame(self, self.step, self.next_block)  # type: ignore[arg-type]
        self.next_block += 1
        self.admitted = False
        stream = self.stream

        def admit() -> None:
            if self.stream is stream:
                self.admitted = True

        stream.offer(frame, admit)

    @property
    def spec(self) -> ModelSpec:
        return self.group.spec

    def heard(self, frame: BlockFrame) -> None:
        if frame.status is BlockStatus.STREAM_OPEN:
            return
        assert frame.version <= frame.step + 1 or frame.step < self.step
        if frame.step == self.step and frame.version > self.step:
            self.acknowledged.add(frame.block)
            self.acknowledgements += 1
        if len(self.acknowledged) == BLOCKS:
            self.step, self.acknowledged, self.next_block = self.step + 1, set(), 0

    def disconnect(self) -> None:
        if self.stream is not None:
            stream, self.stream = self.stream, None
            stream.close()

    def crash(self) -> None:
        """Comes back under a higher lease epoch, at m: the lowest version when its view took effect."""
        self.disconnect()
        group = self.group
        self.epoch += 1
        epochs = tuple(self.epoch if rank == self.rank else old for rank, old in enumerate(group.view.lease_epochs))
        group.set_view(View(group.view.number + 1, 0, epochs))
        group.commit(len(group.pending))
        reader = group.nodes[0]
        group.apply(reader, len(group.log.committed))
        self.step, self.acknowledged = min(reader.versions()), set()
        for block in range(BLOCKS):
            kept = reader.machine.shards[MODEL].published[block].at(self.step)
            assert kept is not None, "a rank could not compute its step again"
            assert same_bits(kept[0], group.expected(block, self.step))


class _Sink:
    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.stream: Any = None

    def current(self) -> bool:
        return self.stream is None or self.worker.stream is self.stream

    def reply(self, frame: BlockFrame) -> None:
        if self.current():
            self.worker.heard(frame)

    def end(self, refusal: Refusal) -> None:
        assert refusal.reason in (Reason.NOT_LEADER, Reason.VIEW_CHANGED, Reason.SUPERSEDED), refusal
        if self.current():
            self.worker.stream = None


def happen(rng: random.Random, group: Group, workers: list[Worker], *, faults: bool) -> None:
    node, worker = rng.choice(group.nodes), rng.choice(workers)
    if faults and rng.random() < 0.03:
        rng.choice([lambda: group.elect(node), worker.disconnect, worker.crash])()
        return
    kind = rng.randrange(7)
    if kind == 0:
        worker.open()
    elif kind in (1, 2):
        worker.send()
    elif kind == 3 and node.lane.waiting:
        node.lane.run_one()
    elif kind == 4:
        group.commit(rng.randint(0, 3))
    elif kind == 5:
        group.apply(node, rng.randint(0, 3))
    elif kind == 6:
        group.hear(node)
        if rng.random() < 0.3:
            group.ready()


@pytest.mark.parametrize("seed", range(25))
def test_any_schedule_ends_with_the_same_bits(seed: int) -> None:
    rng = random.Random(seed)
    spec = model_spec(ranks=rng.choice([1, 2, 3]), blocks=BLOCKS, optimizer=adam(0.01))
    group = Group(rng, spec)
    workers = [Worker(group, rank) for rank in range(spec.ranks)]
    group.elect(group.nodes[0])
    for _ in range(1500):
        happen(rng, group, workers, faults=True)
    group.ready()
    for _ in range(20_000):
        happen(rng, group, workers, faults=False)
        if all(worker.step == STEPS for worker in workers):
            break
    assert [worker.step for worker in workers] == [STEPS] * spec.ranks, "somebody waits for ever"
    for node in group.nodes:
        group.apply(node, len(group.log.committed))
        assert node.versions() == [STEPS] * BLOCKS
        assert node.alarms == []
        for block in range(BLOCKS):
            assert same_bits(node.weights(block), group.expected(block, STEPS))
