"""A data group in one thread, under the test's hand: a log, replicas, a sum lane that runs when told to."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from consensus.core.interface import Entry, EntryKind
from consensus.runtime.interface import Applied, Committed, Outcome, ReadIndex, ReadOutcome, Refused
from paramserver.shard.commands import Command, CreateShard, InitialBlock, OpenShard, SetView, UpdateBlock, encode
from paramserver.shard.leader import ShardLeader
from paramserver.shard.machine import ShardMachine
from paramserver.shard.options import LeaderOptions
from paramserver.shard.streams import PushStream
from paramserver.wire.checksum import crc32c
from paramserver.wire.errors import Refusal
from paramserver.wire.frames import BlockFrame, BlockStatus, Hello, PushFrame, PushKind
from paramserver.wire.layout import FLOAT, Flat, Layout
from paramserver.wire.protos import View
from paramserver.wire.spec import ModelSpec, OptimizerSpec, TensorSpec, sgd

GROUP, MODEL, EPOCH = 1, 7, 3
CLUSTER = bytes(16)
ELEMENTS = 1024  # of a block
PLACEMENT = 5


def model_spec(*, ranks: int = 2, blocks: int = 3, optimizer: OptimizerSpec | None = None, **more: Any) -> ModelSpec:
    """The last block is a shorter one."""
    elements = blocks * ELEMENTS - 100
    tensors = (TensorSpec("weights", (elements - 4,)), TensorSpec("bias", (2, 2)))
    return ModelSpec("digits", tensors, optimizer or sgd(0.5), ranks, block_bytes=4 * ELEMENTS, **more)


def create_command(spec: ModelSpec, *, first: int = 0, blocks: int | None = None) -> CreateShard:
    count = Layout(spec).blocks - first if blocks is None else blocks
    return CreateShard(model=MODEL, generation=1, spec=spec, first_block=first, blocks=count, placement_epoch=PLACEMENT)


def initial_values(spec: ModelSpec, block: int) -> Flat:
    return np.linspace(-1, 1, Layout(spec).block_elements(block), dtype=FLOAT)


def gradient(spec: ModelSpec, *, step: int, rank: int, block: int) -> Flat:
    """What this rank computes, a function of its arguments alone."""
    random = np.random.default_rng((step, rank, block))
    return random.standard_normal(Layout(spec).block_elements(block), dtype=np.float32)


def view_of(spec: ModelSpec, number: int = 1, epochs: tuple[int, ...] | None = None) -> View:
    return View(number, 0, epochs or (1,) * spec.ranks)


def opening_commands(spec: ModelSpec, **create: Any) -> list[Command]:
    """Everything up to an open model in view 1."""
    shard = create_command(spec, **create)
    blocks = range(shard.first_block, shard.first_block + shard.blocks)
    return [
        shard,
        *(initial_command(spec, block) for block in blocks),
        OpenShard(model=MODEL, generation=1, epoch=EPOCH),
        SetView(model=MODEL, generation=1, view=view_of(spec)),
    ]


def initial_command(spec: ModelSpec, block: int, *, epoch: int = EPOCH, values: Flat | None = None) -> InitialBlock:
    values = initial_values(spec, block) if values is None else values
    return InitialBlock(model=MODEL, generation=1, epoch=epoch, block=block, elements=values.size, values=values)


def update_command(spec: ModelSpec, block: int, step: int, **more: Any) -> UpdateBlock:
    fields: dict[str, Any] = {
        "model": MODEL,
        "generation": 1,
        "view": 1,
        "block": block,
        "step": step,
        "kind": PushKind.GRADIENT,
        "contributors": (1 << spec.ranks) - 1,
        "count": spec.ranks,
        "elements": Layout(spec).block_elements(block),
    }
    fields |= more
    if fields["kind"] is PushKind.GRADIENT and "values" not in fields:
        fields["values"] = sum(gradient(spec, step=step, rank=rank, block=block) for rank in range(spec.ranks))
    return UpdateBlock(**fields)


def as_entry(command: Command | bytes | memoryview, index: int = 1, term: int = 1) -> Entry:
    payload = command if isinstance(command, bytes | memoryview) else encode(command)
    return Entry(term, index, EntryKind.NORMAL, payload, crc32c(payload))


def machine_with(commands: list[Command]) -> ShardMachine:
    machine = ShardMachine(GROUP)
    for index, command in enumerate(commands, 1):
        machine.apply(as_entry(command, index))
    return machine


class Lane:
    """Work waits until `run_all` (or `run_one`), unless `at_once`."""

    def __init__(self, *, at_once: bool = True) -> None:
        self.at_once = at_once
        self.waiting: deque[tuple[Callable[[], Any], Callable[[Any], None]]] = deque()

    def run(self, lane: str, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        self.waiting.append((work, done))
        if self.at_once:
            self.run_all()

    def run_one(self) -> None:
        work, done = self.waiting.popleft()
        done(work())

    def run_all(self) -> None:
        while self.waiting:
            self.run_one()


class Log:
    """What a group agreed on, `committed`, and what a leader appended since, `pending`."""

    def __init__(self) -> None:
        self.committed: list[Entry] = []
        self.pending: list[tuple[Entry, Callable[[Outcome], None]]] = []
        self.outcomes: dict[int, Callable[[Outcome], None]] = {}
        self.busy = False
        self.full = False

    def add(self, *commands: Command) -> None:
        for command in commands:
            self.committed.append(as_entry(command, len(self.committed) + 1))

    def propose(self, payload: Any, crc: int, done: Callable[[Outcome], None]) -> None:
        if self.busy:
            done(Refused(1, 1, busy=True))
            return
        if self.full:
            done(Refused(1, 1, full=True))
            return
        self.pending.append((Entry(1, 0, EntryKind.NORMAL, payload, crc), done))

    def commit(self) -> None:
        for entry, done in self.pending:
            index = len(self.committed) + 1
            self.committed.append(Entry(entry.term, index, entry.kind, entry.payload, entry.crc))
            self.outcomes[index] = done
        self.pending.clear()

    def lose(self) -> None:
        """What was appended and not committed is gone."""
        self.pending.clear()


class Node:
    """One replica: machine and listener. It applies when told to."""

    def __init__(
        self, log: Log, replica: int = 1, *, options: LeaderOptions | None = None, voters: tuple[int, ...] = ()
    ) -> None:
        self.log = log
        self.lane = Lane()
        self.alarms: list[str] = []
        self.voters = voters
        self.reports: list[tuple[int, bytes]] = []
        self.distrusted: list[str] = []
        self.holds: list[bool] = []
        self.machine = ShardMachine(GROUP)
        self.leader = ShardLeader(
            machine=self.machine,
            replica=replica,
            propose=log.propose,
            read_index=self.read_index,
            lanes=self.lane,
            options=options,
            voters=lambda: self.voters,
            report=lambda to, content: self.reports.append((to, content)),
            distrust=self.distrusted.append,
            hold=self.holds.append,
            address_of=lambda other: f"node{other}:7000",
            on_alarm=self.alarms.append,
        )
        self.replica = replica
        self.applied = 0
        self.asked: list[Callable[[ReadOutcome], None]] | None = None
        """Read indexes that wait; None: each is answered at once, since this replica leads."""

    def read_index(self, done: Callable[[ReadOutcome], None]) -> None:
        if self.asked is None:
            done(ReadIndex(self.applied, 0))
        else:
            self.asked.append(done)

    def apply(self, count: int | None = None) -> list[Any]:
        """Apply committed entries, all of them or the next `count`, and report them in one batch."""
        last = len(self.log.committed) if count is None else self.applied + count
        batch = []
        for entry in self.log.committed[self.applied : last]:
            batch.append(Applied(entry.term, entry.index, self.machine.apply(entry)))
        self.applied = last
        self.leader.applied(batch)
        for item in batch:
            done = self.log.outcomes.pop(item.index, None)
            if done is not None:
                done(Committed(item.term, item.index, item.result))
        return [item.result for item in batch]

    def lead(self, term: int = 1) -> None:
        self.leader.leader_changed(self.replica, term)
        self.apply()
        self.leader.leading(term)

    def settle(self) -> None:
        """Commit and apply until nothing moves."""
        while self.log.pending:
            self.log.commit()
            self.apply()

    def weights(self, block: int) -> Flat:
        shard = self.machine.shards[MODEL]
        weights = shard.published[block - shard.info.create.first_block].weights
        assert weights is not None
        return weights

    def versions(self) -> list[int]:
        return [block.version for block in self.machine.shards[MODEL].published]


class Replies:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.frames: list[BlockFrame] = []
        self.refusal: Refusal | None = None
        self.opened = False

    def reply(self, frame: BlockFrame) -> None:
        if frame.status is BlockStatus.STREAM_OPEN:
            self.opened = True
        else:
            self.frames.append(frame)

    def end(self, refusal: Refusal) -> None:
        assert self.refusal is None
        self.refusal = refusal

    @property
    def seen(self) -> list[tuple[int, int, str]]:
        return [(frame.block, frame.version, frame.status.name) for frame in self.frames]


def hello(rank: int = 0, **more: Any) -> Hello:
    fields: dict[str, Any] = {
        "cluster": CLUSTER,
        "group": GROUP,
        "model": MODEL,
        "generation": 1,
        "placement_epoch": PLACEMENT,
        "view": 1,
        "rank": rank,
        "lease_epoch": 1,
        "want_weights": True,
    }
    return Hello(**(fields | more))


class Rank:
    """A worker's rank as the group sees it: sends frames one after the other, each when the one before was admitted."""

    def __init__(self, node: Node, spec: ModelSpec, rank: int = 0, **more: Any) -> None:
        self.node, self.spec, self.rank = node, spec, rank
        self.replies = Replies()
        self.queue: deque[PushFrame] = deque()
        self.waiting = False
        self.stream: PushStream = node.leader.open_stream(hello(rank, **more), self.replies)

    def push(self, step: int, *blocks: int, **more: Any) -> None:
        for block in blocks:
            self.send(self.frame(step, block, **more))

    def frame(self, step: int, block: int, **more: Any) -> PushFrame:
        kind = more.pop("kind", PushKind.GRADIENT)
        payload: Any = b""
        if kind is PushKind.GRADIENT:
            values = more.pop("values", None)
            values = gradient(self.spec, step=step, rank=self.rank, block=block) if values is None else values
            payload = memoryview(values.tobytes())
        fields: dict[str, Any] = {"block": block, "step": step, "kind": kind, "payload": payload}
        fields["crc"] = crc32c(payload)
        return PushFrame(**(fields | more))

    def send(self, frame: PushFrame) -> None:
        self.queue.append(frame)
        self._next()

    def _next(self) -> None:
        if self.queue and not self.waiting:
            self.waiting = True
            self.stream.offer(self.queue.popleft(), self._admitted)

    def _admitted(self) -> None:
        self.waiting = False
        self._next()

    @property
    def held(self) -> bool:
        return self.waiting


def started(
    *,
    ranks: int = 2,
    blocks: int = 3,
    options: LeaderOptions | None = None,
    voters: tuple[int, ...] = (),
    **spec: Any,
) -> tuple[Node, ModelSpec]:
    """A leading node with an open model in view 1."""
    made = model_spec(ranks=ranks, blocks=blocks, **spec)
    log = Log()
    log.add(*opening_commands(made))
    node = Node(log, options=options, voters=voters)
    node.lead()
    return node, made


def expected_weights(spec: ModelSpec, block: int, steps: int) -> Flat:
    """The faultless run, in plain numpy, for SGD with a mean: the order of additions is the tree's."""
    from paramserver.optim.factory import make
    from paramserver.optim.interface import Update
    from paramserver.wire.tree import tree_sum

    optimizer = make(spec.optimizer)
    weights = initial_values(spec, block)
    slots = tuple(np.zeros_like(weights) for _ in range(optimizer.slots))
    scalars = optimizer.scalars
    for step in range(steps):
        total = tree_sum([gradient(spec, step=step, rank=rank, block=block) for rank in range(spec.ranks)])
        out = np.empty_like(weights)
        scalars = optimizer.update(
            Update(
                weights=weights,
                gradient=total,
                count=spec.ranks,
                slots=slots,
                scalars=scalars,
                out=out,
                slots_out=slots,
            )
        )
        weights = out
    return weights


def flip(values: Flat, element: int = 5, bit: int = 20) -> None:
    """A bit of memory is another, and nobody was told."""
    values.flags.writeable = True
    values.view(np.uint32)[element] ^= np.uint32(1 << bit)


def same_bits(left: Flat, right: Flat) -> bool:
    return left.tobytes() == right.tobytes()
