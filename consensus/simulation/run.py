"""One seed, one run: the door to the simulator.

Owns how a seed decides everything: how many nodes and groups, which faults, which surroundings. Must not know: how any
of it is carried out.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial

from consensus.core.interface import Configuration, GroupId, NodeId
from consensus.simulation.clients import LedgerLoad
from consensus.simulation.cluster import Cluster, SimulationOptions
from consensus.simulation.faults import Fault, draw_faults
from consensus.simulation.node import CLUSTER, GroupSpec
from consensus.simulation.profile import Profile, draw_profile
from consensus.simulation.report import Report
from consensus.simulation.schedule import stream
from consensus.simulation.wire import through_codec


def spread_groups(nodes: Sequence[NodeId], groups: Sequence[GroupId], replicas: int) -> tuple[GroupSpec, ...]:
    """Group g on `replicas` nodes beginning with the g-th; replica ids are node ids."""
    specs = []
    for place, group in enumerate(groups):
        homes = tuple(nodes[(place + offset) % len(nodes)] for offset in range(min(replicas, len(nodes))))
        specs.append(GroupSpec(group, Configuration(homes), {home: home for home in homes}))
    return tuple(specs)


def draw_size(source: random.Random) -> tuple[int, int, int]:
    """(nodes, groups, replicas a group)."""
    return source.choice(((3, 1, 3), (3, 1, 3), (3, 3, 3), (3, 2, 3), (5, 1, 5), (4, 2, 3), (2, 1, 2), (1, 1, 1)))


def run_seed(
    seed: int,
    *,
    options: SimulationOptions | None = None,
    profile: Profile | None = None,
    plan: Sequence[Fault] | None = None,
    size: tuple[int, int, int] | None = None,
    clients: int = 6,
    lines: int = 5,
) -> Report:
    """Run clients of ledgers on a cluster with faults. What is not given is drawn from the seed. The same arguments
    give the same report, trace hash included."""
    options = options or SimulationOptions()
    source = stream(seed, "plan")
    node_count, group_count, replicas = size or draw_size(source)
    nodes = tuple(range(1, node_count + 1))
    groups = tuple(range(1, group_count + 1))
    drawn = draw_faults(source, nodes=nodes, groups=groups, duration_ms=options.load_ms)
    profile = profile or draw_profile(source)
    cluster = Cluster(
        seed=seed,
        nodes=nodes,
        groups=spread_groups(nodes, groups, replicas),
        application=LedgerLoad(seed=seed, clients=clients, lines=lines),
        profile=profile,
        plan=drawn if plan is None else plan,
        options=options,
        wire=partial(through_codec, CLUSTER) if profile.codec else None,
    )
    return cluster.run()
