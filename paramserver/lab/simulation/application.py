"""Synchronous training as the load of a simulated cluster (`consensus.simulation.cluster.Application`).

Owns the model, its ranks, its director, and the verdict: the servers' final state is the reference run's, bit by bit,
on every replica, and nothing acknowledged was lost. Must not know: how faults are made.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from consensus.core.interface import GroupId, NodeId
from consensus.runtime.interface import GroupListener, Outcome, StateMachine
from consensus.simulation.cluster import Cluster
from consensus.simulation.errors import Violated
from consensus.simulation.node import SimulatedNode
from consensus.simulation.profile import between
from consensus.simulation.schedule import MS, stream
from paramserver.lab.simulation.director import Director
from paramserver.lab.simulation.line import Line, Lines
from paramserver.lab.simulation.memory import MemoryFlip, WrongMemory
from paramserver.lab.simulation.rank import Rank, draw_deaths
from paramserver.lab.simulation.reference import Array, Codecs, Training
from paramserver.shard.commands import Command, CreateShard, InitialBlock, OpenShard
from paramserver.shard.leader import ShardLeader
from paramserver.shard.machine import ShardMachine
from paramserver.shard.options import LeaderOptions
from paramserver.wire.checksum import digest
from paramserver.wire.spec import Codec, ModelSpec, TensorSpec, adam, momentum, sgd

STEPS_AFTER = 4
"""Steps after healing, to show that there is progress."""
COMPARE_MS = 100
COUNTED = (
    "pushes_repeated",
    "pushes_duplicate",
    "sums_dropped",
    "streams_parked",
    "updates_refused",
    "digests_compared",
    "digests_unequal",
    "blocks_scrubbed",
    "replicas_rebuilt",
)
"""Of what leaders count, what a run must have met to be worth much."""


def draw_spec(source: random.Random) -> ModelSpec:
    """A model of a few small blocks."""
    return ModelSpec(
        name="simulated",
        tensors=(TensorSpec("a", (37, 61)), TensorSpec("b", (source.randrange(1, 3000),)), TensorSpec("c", ())),
        optimizer=source.choice((sgd(0.1), momentum(0.05, 0.9), adam(0.01))),
        ranks=source.choice((1, 2, 2, 3)),
        block_bytes=4096,
    )


def draw_codecs(seed: int, spec: ModelSpec) -> tuple[ModelSpec, Codecs]:
    """In which the sums of a seed's run are logged, and its ranks push and have weights come back: each its own. From a
    stream apart, so that a seed has the faults it always had."""
    source = stream(seed, "codecs")
    choice = (Codec.FP32, Codec.FP32, Codec.BF16, Codec.FP16)
    logged = replace(spec, log_codec=source.choice(choice))
    push, weights = (tuple(source.choice(choice) for _ in range(spec.ranks)) for _ in range(2))
    return logged, Codecs(push, weights)


def shard_digest(machine: StateMachine) -> bytes:
    """Equal for equal states of a data group."""
    if not isinstance(machine, ShardMachine):
        raise Violated(f"not a shard: {machine!r}")
    return digest(
        part
        for model, shard in sorted(machine.shards.items())
        for part in (
            repr((model, shard.info.create, shard.info.view, shard.info.open_epoch, shard.info.steps)).encode(),
            *(known for block in shard.published for _, known in block.digests),
        )
    )


class TrainingLoad:
    def __init__(self, *, seed: int, load_ms: int, flips: Sequence[MemoryFlip] = ()) -> None:
        source = stream(seed, "training")
        self.training = Training(seed, *draw_codecs(seed, draw_spec(source)))
        self.model = 7
        self.generation = 1
        self.acknowledged_versions: dict[int, int] = {}
        self._seed = seed
        self._options = LeaderOptions(window_blocks=source.choice((1, 2, 3, 16)), scrub_period_ms=1000)
        self._random = source
        self._ranks = [Rank(self, number, seed) for number in range(self.training.spec.ranks)]
        self._deaths = draw_deaths(source, len(self._ranks), load_ms)
        self._leaders: dict[tuple[NodeId, GroupId], ShardLeader] = {}
        self._lines = Lines()
        self._healed = False
        self._away: set[int] = set()
        self._memory = WrongMemory(flips, seed)

    # --- Application ------------------------------------------------------------------------------------------------

    def machine(self, node: NodeId, group: GroupId) -> tuple[StateMachine, GroupListener]:
        host = self.cluster.nodes[node]
        machine = ShardMachine(group)

        def propose(payload: bytes | memoryview, crc: int, done: Callable[[Outcome], None]) -> None:
            host.handles[group].propose(payload, crc, done)

        leader = ShardLeader(
            machine=machine,
            replica=node,
            propose=propose,
            read_index=lambda done: host.handles[group].read_index(done),
            lanes=host.lanes,
            options=self._options,
            voters=lambda: host.handles[group].voters,
            report=lambda to, content: host.handles[group].report(to, content),
            distrust=lambda reason: host.handles[group].distrust(reason),
            hold=lambda held: host.handles[group].hold_snapshots(held=held),
            address_of=lambda replica: f"n{replica}",
            on_alarm=lambda line: self._alarm(group, line),
            on_leading=lambda term: self._announce(group, term, node),
        )
        self._leaders[(node, group)] = leader
        self._look_after(host, group, leader)
        return machine, leader

    def _look_after(self, host: SimulatedNode, group: GroupId, leader: ShardLeader) -> None:
        """What a server does about once a second."""

        def look() -> None:
            if self._leaders.get((host.node, group)) is leader:
                leader.tick(self.cluster.scheduler.now_us // MS)
                self._look_after(host, group, leader)

        host.later(COMPARE_MS * MS, "", look)

    def begin(self, cluster: Cluster) -> None:
        self.cluster = cluster
        cluster.counts.update(self.training.codecs.met(self.training.spec))
        self._director = Director(cluster, self._seed, len(self._ranks))
        self._memory.begin(cluster)
        shards = self._place()
        create: dict[GroupId, Command] = {}
        initial: dict[GroupId, list[InitialBlock]] = {}
        for group, blocks in shards.items():
            create[group] = CreateShard(
                model=self.model,
                generation=self.generation,
                spec=self.training.spec,
                first_block=blocks.start,
                blocks=len(blocks),
                placement_epoch=1,
            )
            initial[group] = [self._initial(block) for block in blocks]
        self._shards = shards
        opening = OpenShard(model=self.model, generation=self.generation, epoch=1)
        self._director.create(create, initial, opening, self._opened)
        for at_ms, rank, away_ms in self._deaths:
            cluster.scheduler.at(at_ms * MS, lambda rank=rank, away_ms=away_ms: self._kill(rank, away_ms))  # type: ignore[misc]

    def running(self, node: SimulatedNode) -> None:
        return None

    def stopped(self, node: NodeId) -> None:
        self._count(node)
        self._lines.node_gone(node)

    def _count(self, node: NodeId) -> None:
        for (at, _), leader in self._leaders.items():
            if at == node:
                for name in COUNTED:
                    self.cluster.counts[name.replace("_", " ")] += leader.counters[name]

    def crash_clients(self, source: random.Random) -> None:
        """Ranks have deaths of their own."""

    def heal(self) -> None:
        self._healed = True
        self._memory.end()
        goal = max(rank.step for rank in self._ranks) + STEPS_AFTER
        for rank in self._ranks:
            rested = rank.goal is not None
            rank.goal = goal
            if rested:
                rank.begin_step()

    def done(self) -> bool:
        return self._director.idle and all(rank.done for rank in self._ranks) and not self._memory.unnoticed

    def waits_for(self) -> str:
        if not self._director.is_open:
            return "the model to be opened"
        if self._memory.unnoticed:
            return f"the wrong replicas of groups {self._memory.unnoticed} to be rebuilt"
        return ", ".join(f"{rank.name} at step {rank.step}" for rank in self._ranks if not rank.done) or "orders"

    def digest(self, machine: StateMachine) -> bytes:
        return shard_digest(machine)

    def acknowledged(self) -> int:
        return sum(self.acknowledged_versions.values())

    def operations_checked(self) -> int:
        return self.acknowledged()

    def check(self) -> None:
        for node in self.cluster.nodes:
            self._count(node)
        steps = self._ranks[0].step
        for spec in self.cluster.groups:
            for host in self.cluster.comparable(spec.group):
                machine = self._machine(host.machines[spec.group].inner)
                shard = machine.shards[self.model]
                for block, published in zip(self.blocks_of(spec.group), shard.published, strict=True):
                    self._check_block(host.node, block, published.version, steps, published.weights)

    def _check_block(self, node: NodeId, block: int, version: int, steps: int, weights: object) -> None:
        if version != steps or version < self.acknowledged_versions.get(block, 0):
            raise Violated(f"node {node}: block {block} is at version {version}, the ranks did {steps} steps")
        expected = self.training.at(version)[self.training.layout.block_slice(block)]
        if weights is None or getattr(weights, "tobytes", bytes)() != expected.tobytes():
            raise Violated(f"node {node}: block {block}, version {version}, has other bits than the reference run")

    # --- World ------------------------------------------------------------------------------------------------------

    def blocks_of(self, group: GroupId) -> range:
        return self._shards[group]

    def groups(self) -> list[GroupId]:
        return list(self._shards)

    def nodes_of(self, group: GroupId) -> list[NodeId]:
        return next(list(spec.nodes.values()) for spec in self.cluster.groups if spec.group == group)

    def leader_at(self, node: NodeId, group: GroupId) -> ShardLeader | None:
        return self._leaders.get((node, group))

    def believed(self, rank: int, block: int, version: int, values: Array) -> Array:
        """What a rank goes on with. From a replica whose memory was hit wrong values may come, until that is noticed;
        what a real worker makes of them is the business of people, whom the alarm tells."""
        group = next(group for group, blocks in self._shards.items() if block in blocks)
        right = self.training.seen(rank, version)[self.training.layout.block_slice(block)]
        if values.tobytes() != right.tobytes() and self._memory.may_be_wrong(group):
            self.cluster.counts["rank: wrong values"] += 1
            return right
        return values

    def line(self, line: Line) -> None:
        self._lines.add(line)

    def acknowledged_block(self, block: int, version: int) -> None:
        known = self.acknowledged_versions.get(block, 0)
        self.acknowledged_versions[block] = max(known, version)

    # --- within -----------------------------------------------------------------------------------------------------

    def _place(self) -> dict[GroupId, range]:
        """Contiguous ranges, as even as they get."""
        groups = [spec.group for spec in self.cluster.groups]
        blocks = self.training.layout.blocks
        cuts = [blocks * place // len(groups) for place in range(len(groups) + 1)]
        return {group: range(cuts[place], cuts[place + 1]) for place, group in enumerate(groups)}

    def _initial(self, block: int) -> InitialBlock:
        values = self.training.initial[self.training.layout.block_slice(block)]
        return InitialBlock(
            model=self.model, generation=self.generation, epoch=1, block=block, elements=len(values), values=values
        )

    def _opened(self) -> None:
        self.cluster.trace.add("director", "the model is open")
        for rank in self._ranks:
            if rank.alive:
                rank.begin_step()

    def _announce(self, group: GroupId, term: int, node: NodeId) -> None:
        """To every worker's light stream; some are not connected at the moment."""
        self.cluster.trace.add(f"n{node}", f"serves group {group} in term {term}")
        if self.cluster.nodes[node].handles[group].distrusted:
            raise Violated(f"node {node} leads group {group} although its state is not to be trusted")
        profile = self.cluster.network.profile
        for rank in self._ranks:
            if self._random.randrange(100) >= 10:
                delay = between(self._random, profile.delay_us)
                rank.later(delay, lambda rank=rank: rank.heard(group, term, node))  # type: ignore[misc]

    def _kill(self, number: int, away_ms: int) -> None:
        rank = self._ranks[number]
        if self._healed or not rank.alive or not self._director.is_open:
            return
        self.cluster.counts["rank killed"] += 1
        rank.die()
        life = rank.life

        def granted(view: int, lease: int, lowest: int) -> None:
            if rank.life == life:
                rank.revive(view, lease, lowest)

        self.cluster.scheduler.after(
            away_ms * MS, lambda: self._director.claim(self.model, self.generation, number, granted)
        )

    def _alarm(self, group: GroupId, line: str) -> None:
        self.cluster.trace.add("alarm", line)
        self.cluster.counts["alarms"] += 1
        if not self._memory.may_be_wrong(group):
            raise Violated(f"alarm: {line}")

    @staticmethod
    def _machine(machine: StateMachine) -> ShardMachine:
        if not isinstance(machine, ShardMachine):
            raise Violated(f"not a shard: {machine!r}")
        return machine
