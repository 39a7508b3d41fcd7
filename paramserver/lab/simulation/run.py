"""One seed, one training run under faults."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from consensus.simulation.cluster import Cluster, SimulationOptions
from consensus.simulation.faults import Fault, draw_faults
from consensus.simulation.node import CLUSTER
from consensus.simulation.profile import Profile, draw_profile
from consensus.simulation.report import Report
from consensus.simulation.run import spread_groups
from consensus.simulation.schedule import stream
from consensus.simulation.wire import through_codec
from paramserver.lab.simulation.application import TrainingLoad


def run_seed(
    seed: int,
    *,
    options: SimulationOptions | None = None,
    profile: Profile | None = None,
    plan: Sequence[Fault] | None = None,
    size: tuple[int, int, int] | None = None,
) -> Report:
    """Train on (nodes, groups, replicas a group) under faults. What is not given is drawn from the seed. The same
    arguments give the same report, trace hash included."""
    options = options or SimulationOptions(load_ms=5000)
    source = stream(seed, "plan")
    node_count, group_count, replicas = size or source.choice(((3, 3, 3), (3, 2, 3), (3, 1, 3), (4, 2, 3), (5, 1, 5)))
    nodes = tuple(range(1, node_count + 1))
    groups = tuple(range(1, group_count + 1))
    drawn = draw_faults(
        source, nodes=nodes, groups=groups, duration_ms=options.load_ms, from_ms=source.choice((0, 800, 800, 800))
    )
    profile = profile or draw_profile(source)
    cluster = Cluster(
        seed=seed,
        nodes=nodes,
        groups=spread_groups(nodes, groups, replicas),
        application=TrainingLoad(seed=seed, load_ms=options.load_ms),
        profile=profile,
        plan=drawn if plan is None else plan,
        options=options,
        wire=partial(through_codec, CLUSTER) if profile.codec else None,
    )
    return cluster.run()
