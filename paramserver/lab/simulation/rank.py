"""A simulated worker: one rank of a model, with its streams, its retries and its lives.

Owns its step and what of it is not acknowledged yet. Invariants it keeps: nothing of step s + 1 leaves before version
s + 1 of every block was seen (RULES S6); blocks go in ascending order, one stream a group (S5); after a restart it
pulls exactly version m and pushes all of step m again (S7). What it checks: every version of every block has the bits
of the reference run, whoever served it, and nothing it was promised is taken back. Must not know: consensus.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Protocol

import numpy as np

from consensus.core.interface import GroupId, NodeId
from consensus.simulation.cluster import Cluster
from consensus.simulation.errors import Violated
from consensus.simulation.profile import between
from consensus.simulation.schedule import MS, stream
from paramserver.lab.simulation.line import Line
from paramserver.lab.simulation.reference import Array, Training
from paramserver.lab.simulation.serving import ServedStream
from paramserver.shard.forms import Form
from paramserver.shard.leader import ShardLeader
from paramserver.shard.reads import BlockRead, Value
from paramserver.wire.checksum import crc32c
from paramserver.wire.codecs import Codec, decode, encode
from paramserver.wire.errors import Reason, Refusal
from paramserver.wire.frames import BlockFrame, BlockStatus, Hello, PushFrame, PushKind, decode_block, encode_block

DEADLINES_MS = ((20, 150), (100, 500), (300, 1500))
"""Without progress a stream is given up; ranks differ in their patience. Within a pair times are drawn anew."""
PAUSE_MS = (2, 40)
THINK_MS = (0, 20)
MAY_HAPPEN = frozenset(
    {
        Reason.NOT_LEADER,
        Reason.NOT_READY,
        Reason.BUSY,
        Reason.VIEW_CHANGED,
        Reason.SUPERSEDED,
        Reason.STALE_LEASE,
        Reason.NOT_OPEN,
        Reason.NOT_FOUND,
        Reason.DAMAGED,
        Reason.DISK_FULL,
    }
)
"""Refusals that a correct rank may meet; all others are bugs (FAR_AHEAD: HAZARDS 35; GONE: HAZARDS 37). NOT_OPEN and
NOT_FOUND only from a replica that is behind, DAMAGED from one that is being rebuilt, DISK_FULL while
a leader has no room."""


class World(Protocol):
    """What ranks share."""

    cluster: Cluster
    training: Training
    model: int
    generation: int

    def blocks_of(self, group: GroupId) -> range: ...

    def groups(self) -> list[GroupId]: ...

    def nodes_of(self, group: GroupId) -> list[NodeId]: ...

    def leader_at(self, node: NodeId, group: GroupId) -> ShardLeader | None: ...

    def believed(self, rank: int, block: int, version: int, values: Array) -> Array: ...

    def line(self, line: Line) -> None: ...

    def acknowledged_block(self, block: int, version: int) -> None: ...


class Rank:
    def __init__(self, world: World, number: int, seed: int) -> None:
        self.number = number
        self.step = 0
        self.goal: int | None = None
        self.life = 1
        self.alive = True
        self.view = 1
        self.lease = 1
        self.known: dict[GroupId, tuple[int, NodeId]] = {}
        """(term, node) of the leader of each group as last announced."""
        self.random = stream(seed, f"rank {number}")
        self._patience_ms = self.random.choice(DEADLINES_MS)
        self.world = world
        self.name = f"rank {number}"
        self._weights: Array = world.training.seen(number, 0).copy()
        self._missing: set[int] = set()
        self._streams: dict[GroupId, GroupStream] = {}

    @property
    def done(self) -> bool:
        return self.goal is not None and self.step >= self.goal and self.alive

    # --- lives ------------------------------------------------------------------------------------------------------

    def die(self) -> None:
        self.life += 1
        self.alive = False
        self.known.clear()
        for group_stream in self._streams.values():
            group_stream.die()
        self._streams.clear()
        self.world.cluster.trace.add(self.name, "is killed")

    def revive(self, view: int, lease: int, step: int) -> None:
        """Its place was granted again; weights come from the servers."""
        self.alive = True
        self.view, self.lease, self.step = view, lease, step
        self._weights = np.full_like(self.world.training.initial, np.nan)
        self._missing = set(range(self.world.training.layout.blocks))
        for group in self.world.groups():
            for block in self.world.blocks_of(group):
                Pull(self, group, block, step)

    def deadline_us(self) -> int:
        return between(self.random, self._patience_ms) * MS

    def later(self, delay_us: int, action: Callable[[], None]) -> None:
        """Run something in this life of the rank."""
        life = self.life
        self.world.cluster.scheduler.after(delay_us, lambda: action() if self.life == life else None)

    # --- steps ------------------------------------------------------------------------------------------------------

    def begin_step(self) -> None:
        if self.goal is not None and self.step >= self.goal:
            return
        self.later(between(self.random, THINK_MS) * MS, self._push)

    def _push(self) -> None:
        training = self.world.training
        weights = self._weights
        if weights.tobytes() != training.seen(self.number, self.step).tobytes():
            raise Violated(f"{self.name} begins step {self.step} with weights that are not version {self.step}")
        gradient = training.gradient(self.number, self.step, weights)
        self._weights = np.full_like(weights, np.nan)
        self._missing = set(range(training.layout.blocks))
        for group in self.world.groups():
            frames = {block: self._frame(block, gradient) for block in self.world.blocks_of(group)}
            found = self._streams.get(group)
            if found is None:
                found = self._streams[group] = GroupStream(self, group)
            found.push(frames)

    def _frame(self, block: int, gradient: Array) -> PushFrame:
        training = self.world.training
        kind = training.kind(self.number, self.step, block)
        if kind is not PushKind.GRADIENT:
            return PushFrame(block=block, step=self.step, kind=kind)
        codec = training.codecs.push[self.number]
        payload = bytes(encode(codec, gradient[training.layout.block_slice(block)]))
        return PushFrame(block=block, step=self.step, kind=kind, codec=codec, crc=crc32c(payload), payload=payload)

    @property
    def weights_codec(self) -> Codec:
        return self.world.training.codecs.weights[self.number]

    def got(self, block: int, version: int, wanted: int, form: Form) -> None:
        """Version `wanted` of a block was asked for, `version` came."""
        training = self.world.training
        if version != wanted:
            raise Violated(f"{self.name} wants version {wanted} of block {block}, was given {version}")
        if form.codec is not self.weights_codec:
            raise Violated(f"{self.name} wants weights as {self.weights_codec.name}, was given {form.codec.name}")
        place = training.layout.block_slice(block)
        came = decode(form.codec, form.payload, place.stop - place.start)
        values = self.world.believed(self.number, block, version, came)
        if values.tobytes() != training.seen(self.number, version)[place].tobytes():
            raise Violated(f"{self.name}: version {version} of block {block} has other bits than the reference run")
        if values is came and form.crc != crc32c(form.payload):
            raise Violated(f"{self.name}: version {version} of block {block} has another CRC than it says")
        self._weights[place] = values
        self._missing.discard(block)

    @property
    def whole(self) -> bool:
        return not self._missing

    def pulled(self) -> None:
        if self.whole:
            self.begin_step()

    def acknowledged(self) -> None:
        if self.whole:
            self.step += 1
            self.world.cluster.trace.add(self.name, f"has version {self.step} of everything")
            self.begin_step()

    # --- leaders ----------------------------------------------------------------------------------------------------

    def heard(self, group: GroupId, term: int, node: NodeId) -> None:
        """An announcement (RULES C7): the highest term is followed at once."""
        if self.alive and term > self.known.get(group, (0, 0))[0]:
            self.known[group] = (term, node)
            if group in self._streams:
                self._streams[group].follow(node)

    def refused(self, refusal: Refusal) -> None:
        if refusal.reason not in MAY_HAPPEN:
            raise Violated(f"{self.name} was refused: {refusal}")
        self.world.cluster.counts[f"rank: {refusal.reason.value}"] += 1
        if refusal.reason is Reason.VIEW_CHANGED:
            self.view = max(self.view, refusal.view)


class GroupStream:
    """The rank's way to the leader of one group: opens, sends what is not acknowledged, and opens again."""

    def __init__(self, rank: Rank, group: GroupId) -> None:
        self._rank = rank
        self._group = group
        self._pending: dict[int, PushFrame] = {}
        self._line: Line | None = None
        self._served: ServedStream | None = None
        self._open = False
        self._attempt = 0
        self._progress = 0
        self._target: NodeId = 0

    def push(self, frames: dict[int, PushFrame]) -> None:
        self._pending = dict(sorted(frames.items()))
        self._watch()
        if self._open:
            self._send_pending()
        elif self._line is None:
            self._connect()

    def follow(self, node: NodeId) -> None:
        if self._pending and (self._line is None or self._line.node.node != node):
            self._hang_up()
            self._connect()

    def die(self) -> None:
        """The rank's process is gone; its kernel closes the line."""
        self._attempt += 1
        if self._line is not None:
            self._line.close()

    # --- connecting -------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        rank, world, group = self._rank, self._rank.world, self._group
        self._attempt += 1
        attempt = self._attempt
        known = rank.known.get(group, (0, 0))[1]
        target = self._target or known or rank.random.choice(world.nodes_of(group))
        self._target = 0
        hello = Hello(
            cluster=bytes(16),
            group=group,
            model=world.model,
            generation=world.generation,
            placement_epoch=1,
            view=rank.view,
            rank=rank.number,
            lease_epoch=rank.lease,
            want_weights=True,
            weights_codec=rank.weights_codec,
        )
        node = world.cluster.nodes[target]

        def current(action: Callable[[], None]) -> Callable[[], None]:
            return lambda: action() if attempt == self._attempt else None

        line = Line(
            world.cluster,
            node,
            rank.random,
            rank_told=current(self._lost),
            server_told=lambda: served.close(),
        )
        served = ServedStream(
            hello,
            replied=lambda frame: line.down(current(lambda: self._replied(frame))),
            ended=lambda refusal: line.down(current(lambda: self._ended(refusal))),
        )
        world.line(line)
        self._line, self._served, self._open = line, served, False
        world.cluster.trace.add(rank.name, f"opens a stream of group {group} at n{target}, view {rank.view}")

        def arrive() -> None:
            leader = world.leader_at(target, group)
            if leader is not None:
                served.open(leader)

        line.up(f"stream of {rank.name}, group {group}", arrive)

    def _hang_up(self) -> None:
        self._attempt += 1
        if self._line is not None:
            self._line.close()
        self._line, self._served, self._open = None, None, False

    def _lost(self) -> None:
        """The connection broke."""
        self._hang_up()
        self._again()

    def _ended(self, refusal: Refusal) -> None:
        rank = self._rank
        rank.world.cluster.trace.add(rank.name, f"group {self._group} ends the stream: {refusal.reason.value}")
        rank.refused(refusal)
        here = self._line.node.node if self._line is not None else 0
        self._hang_up()
        if refusal.reason is Reason.NOT_LEADER:
            known = rank.known.get(self._group, (0, 0))
            # A replica that does not run any more says so in no term.
            if refusal.term >= known[0] or here == known[1]:
                rank.known.pop(self._group, None)
            if refusal.leader_address:
                self._target = int(refusal.leader_address[1:])
        self._again()

    def _again(self) -> None:
        """After a pause, unless an announcement was quicker."""
        attempt = self._attempt

        def connect() -> None:
            if attempt == self._attempt and self._pending:
                self._connect()

        self._rank.later(between(self._rank.random, PAUSE_MS) * MS, connect)

    def _watch(self) -> None:
        """Give a stream up that shows no progress for too long."""
        progress, attempt = self._progress, self._attempt

        def look() -> None:
            if not self._pending:
                return
            if (progress, attempt) == (self._progress, self._attempt):
                self._rank.world.cluster.counts["rank: deadline"] += 1
                self._rank.known.pop(self._group, None)
                self._hang_up()
                self._connect()
            self._watch()

        self._rank.later(self._rank.deadline_us(), look)

    # --- frames -----------------------------------------------------------------------------------------------------

    def _send_pending(self) -> None:
        line, served = self._line, self._served
        if line is None or served is None:
            return
        for frame in self._pending.values():
            what = f"{self._rank.name}: {frame.kind.name.lower()} of block {frame.block}, step {frame.step}"
            line.up(what, lambda frame=frame: served.arrived(frame))  # type: ignore[misc]

    def _replied(self, frame: BlockFrame) -> None:
        frame = decode_block(encode_block(frame))
        rank = self._rank
        if frame.status is BlockStatus.STREAM_OPEN:
            self._open = True
            self._send_pending()
            return
        expected = self._pending.pop(frame.block, None)
        if expected is None or frame.step != expected.step:
            if expected is not None:
                self._pending[frame.block] = expected
                self._pending = dict(sorted(self._pending.items()))
            return
        if frame.status not in (BlockStatus.APPLIED, BlockStatus.DUPLICATE):
            raise Violated(f"{rank.name}: block {frame.block} was answered with {frame.status.name}")
        self._progress += 1
        rank.world.cluster.counts[f"rank: {frame.status.name}"] += 1
        rank.world.acknowledged_block(frame.block, frame.version)
        rank.got(frame.block, frame.version, expected.step + 1, Form(frame.codec, memoryview(frame.payload), frame.crc))
        rank.acknowledged()


class Pull:
    """Exactly one version of one block, from any replica that has it (RULES R1)."""

    def __init__(self, rank: Rank, group: GroupId, block: int, version: int) -> None:
        self._rank = rank
        self._group = group
        self._block = block
        self._version = version
        self._life = rank.life
        self._attempt = 0
        self._try()

    def _try(self) -> None:
        rank, world = self._rank, self._rank.world
        self._attempt += 1
        attempt = self._attempt
        target = rank.random.choice(world.nodes_of(self._group))
        want = BlockRead(
            model=world.model,
            generation=world.generation,
            placement_epoch=1,
            block=self._block,
            version=self._version,
        )

        def read() -> None:
            leader = world.leader_at(target, self._group)
            if leader is None:
                return
            try:
                found = leader.read(want, read)
            except Refusal as refusal:
                self._travel(lambda refusal=refusal: self._refused(attempt, refusal))  # type: ignore[misc]
                return
            if isinstance(found, Value):
                if world.cluster.nodes[target].handles[self._group].distrusted:
                    raise Violated(f"node {target} serves block {self._block} although its state is not to be trusted")
                leader.encoded(found, rank.weights_codec, lambda form: came(found.version, form))

        def came(version: int, form: Form) -> None:
            self._travel(lambda: self._got(attempt, version, form))

        node = world.cluster.nodes[target]
        self._travel(lambda: node.later(0, f"{rank.name} pulls version {self._version} of {self._block}", read))
        rank.later(rank.deadline_us(), lambda: self._again(attempt))

    def _travel(self, action: Callable[[], None]) -> None:
        rank = self._rank
        profile = rank.world.cluster.network.profile
        # A waiter at a server may outlive the rank that asked.
        if rank.life == self._life and rank.random.randrange(1000) >= profile.client_loss_permille:
            rank.later(between(rank.random, profile.delay_us), action)

    def _got(self, attempt: int, version: int, form: Form) -> None:
        if attempt == self._attempt:
            self._attempt += 1
            self._rank.world.cluster.counts["rank: pulled"] += 1
            self._rank.got(self._block, version, self._version, form)
            self._rank.pulled()

    def _refused(self, attempt: int, refusal: Refusal) -> None:
        if attempt == self._attempt:
            self._rank.refused(refusal)
            self._again(attempt)

    def _again(self, attempt: int) -> None:
        if attempt == self._attempt:
            self._attempt += 1
            self._rank.later(between(self._rank.random, PAUSE_MS) * MS, self._try)


def draw_deaths(source: random.Random, ranks: int, duration_ms: int) -> list[tuple[int, int, int]]:
    """(at_ms, rank, away_ms) of workers that are killed and come back with their session."""
    gap_ms = source.choice((300, 1000, 4000))
    deaths, at_ms = [], source.randrange(100, 2000)
    while at_ms < duration_ms:
        deaths.append((at_ms, source.randrange(ranks), source.randrange(1, 400)))
        at_ms += source.randrange(20, 2 * gap_ms)
    return deaths
