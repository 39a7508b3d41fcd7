"""Everything that decides a run, as one value.

Owns `Case` and the drawing of one from a seed. Invariants: a case runs the same way every time; each seed draws its own
swarm of settings (nodes, groups, surroundings, kinds of faults, sizes of segments and snapshots); a case that is cut
down (shrink.py) is still one that could have been drawn. Must not know: how it is run.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from consensus.core.interface import Configuration, GroupId, NodeId
from consensus.simulation.cluster import SimulationOptions, small_runtime_options
from consensus.simulation.faults import Fault
from consensus.simulation.node import GroupSpec
from consensus.simulation.plans import draw_faults
from consensus.simulation.profile import Profile, draw_profile
from consensus.simulation.schedule import stream
from consensus.storage.options import WalOptions

KIB = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    seed: int
    nodes: int
    groups: int
    replicas: int
    """Of each group, where there are so many nodes."""
    profile: Profile
    plan: tuple[Fault, ...]
    clients: int = 6
    """Of each group; loads that are not made of such clients ignore it."""
    commands: int = 5
    """Of each client, after healing."""
    options: SimulationOptions = field(default_factory=SimulationOptions)
    hasty: bool = False
    """Of the administrator: members change as fast as they can."""

    @property
    def node_ids(self) -> tuple[NodeId, ...]:
        return tuple(range(1, self.nodes + 1))

    @property
    def group_ids(self) -> tuple[GroupId, ...]:
        return tuple(range(1, self.groups + 1))

    def specs(self) -> tuple[GroupSpec, ...]:
        return spread_groups(self.node_ids, self.group_ids, self.replicas)

    def describe(self) -> str:
        size = f"{self.nodes} nodes, {self.groups} groups of {min(self.replicas, self.nodes)}"
        load = f"{self.clients} clients each, load for {self.options.load_ms} ms, {len(self.plan)} faults"
        load += ", durability replicated" if self.options.replicated else ""
        lines = [f"seed {self.seed}: {size}, {load}", f"surroundings: {self.profile}"]
        return "\n".join([*lines, *(f"{fault.at_ms:8} ms  {fault.describe()}" for fault in self.plan)])

    def on_fewer_nodes(self, nodes: int) -> Case:
        """The same on the first `nodes` nodes; faults of others are left out."""
        kept = set(range(1, nodes + 1))
        plan = []
        for fault in self.plan:
            links = tuple(link for link in fault.links if kept.issuperset(link))
            hit = tuple(node for node in fault.nodes if node in kept)
            if links or hit or fault.leader_of is not None or not (fault.links or fault.nodes):
                plan.append(replace(fault, links=links, nodes=hit))
        return replace(self, nodes=nodes, plan=tuple(plan))

    def with_fewer_groups(self, groups: int) -> Case:
        plan = tuple(fault for fault in self.plan if fault.leader_of is None or fault.leader_of <= groups)
        return replace(self, groups=groups, plan=plan)


def spread_groups(nodes: Sequence[NodeId], groups: Sequence[GroupId], replicas: int) -> tuple[GroupSpec, ...]:
    """Group g on `replicas` nodes beginning with the g-th; replica ids are node ids."""
    specs = []
    for place, group in enumerate(groups):
        homes = tuple(nodes[(place + offset) % len(nodes)] for offset in range(min(replicas, len(nodes))))
        specs.append(GroupSpec(group, Configuration(homes), {home: home for home in homes}))
    return tuple(specs)


def draw_size(source: random.Random, nodes: int | None = None) -> tuple[int, int, int]:
    """(nodes, groups, replicas a group)."""
    nodes = nodes or source.choice((1, 2, 3, 3, 3, 3, 4, 5, 5, 6, 7))
    replicas = min(nodes, source.choice((3, 3, 3, 3, 5, 7, 2)))
    groups = source.choice((1, 1, 2, 3)) if nodes < 6 else source.choice((1, 2))
    return nodes, groups, replicas


def draw_options(source: random.Random, seed: int) -> SimulationOptions:
    """Sizes so small that every run meets rotation and recycling, and most meet snapshots. How much of the log stays in
    memory comes from a source of its own."""
    memory, usual = stream(seed, "memory"), small_runtime_options()
    raft = replace(
        usual.raft,
        unloaded_after_bytes=memory.choice((0, 0, 4 * KIB, 32 * KIB, 1024 * KIB)),
        inflight_stored_bytes_max=memory.choice((4 * KIB, 16 * KIB)),
    )
    runtime = replace(
        usual,
        raft=raft,
        snapshot_log_bytes_min=source.choice((4 * KIB, 24 * KIB, 24 * KIB, 1024 * KIB)),
        keep_bytes_max=source.choice((0, 4 * KIB, 16 * KIB)),
    )
    wal = WalOptions(
        segment_bytes=source.choice((32 * KIB, 64 * KIB, 256 * KIB)),
        reserve_bytes=32 * KIB,
        flush_bytes_max=source.choice((16 * KIB, 64 * KIB)),
        spare_segments=source.choice((0, 1, 2)),
        retired_segments_max=source.choice((0, 2, 8)),
        open_copy_bytes_max=source.choice((0, 16 * KIB, 8 << 20)),
        recovered_bytes_max=memory.choice((0, 0, 2 * KIB, 4 << 20)),
    )
    return SimulationOptions(
        load_ms=source.choice((2500, 4000, 5000)),
        runtime=runtime,
        wal=wal,
        snapshot_chunk_bytes=source.choice((KIB, 4 * KIB, 1024 * KIB)),
    )


def draw_replicated(seed: int) -> bool:
    """One seed of six runs with durability `replicated`. From a source of its own: all else of a seed is the same."""
    return stream(seed, "durability").randrange(6) == 0


def draw_case(seed: int, *, nodes: int | None = None) -> Case:
    """The swarm of settings of a seed, for ledgers."""
    source = stream(seed, "case")
    count, groups, replicas = draw_size(source, nodes)
    options = replace(draw_options(source, seed), replicated=draw_replicated(seed))
    case = Case(
        seed=seed,
        nodes=count,
        groups=groups,
        replicas=replicas,
        profile=draw_profile(source),
        plan=(),
        clients=max(2, 9 // (groups + (replicas > 3))),
        options=options,
    )
    plan = draw_faults(
        source, nodes=case.node_ids, groups=case.group_ids, duration_ms=options.load_ms, administrator=True
    )
    return replace(case, plan=plan)
