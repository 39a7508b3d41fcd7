"""One seed, one training run under faults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from consensus.simulation.case import Case, draw_options
from consensus.simulation.cluster import Cluster, SimulationOptions
from consensus.simulation.faults import Fault
from consensus.simulation.plans import draw_faults
from consensus.simulation.profile import Profile, draw_profile
from consensus.simulation.report import Report
from consensus.simulation.schedule import stream
from consensus.simulation.wire import through_codec
from paramserver.lab.simulation.application import TrainingLoad
from paramserver.lab.simulation.memory import MemoryFlip

SIZES = ((3, 3, 3), (3, 2, 3), (3, 1, 3), (4, 2, 3), (5, 1, 5))
"""(nodes, groups, replicas a group)."""


def draw_case(seed: int, *, nodes: int | None = None) -> Case:
    """The swarm of settings of a seed, for training."""
    source = stream(seed, "training case")
    count, groups, replicas = source.choice(SIZES)
    options = replace(draw_options(source, seed), load_ms=source.choice((3000, 5000)))
    case = Case(
        seed=seed,
        nodes=nodes or count,
        groups=groups,
        replicas=replicas,
        profile=draw_profile(source),
        plan=(),
        options=options,
    )
    # Often the model is opened in peace first: most faults should meet training.
    from_ms = source.choice((0, 800, 800, 800))
    plan = draw_faults(source, nodes=case.node_ids, groups=case.group_ids, duration_ms=options.load_ms, from_ms=from_ms)
    return replace(case, plan=plan)


def run_case(case: Case, flips: Sequence[MemoryFlip] = ()) -> Report:
    """The same case gives the same report, trace hash included."""
    cluster = Cluster(
        seed=case.seed,
        nodes=case.node_ids,
        groups=case.specs(),
        application=TrainingLoad(seed=case.seed, load_ms=case.options.load_ms, flips=flips),
        profile=case.profile,
        plan=case.plan,
        options=case.options,
        wire=through_codec if case.profile.codec else None,
    )
    return cluster.run()


def run_seed(
    seed: int,
    *,
    options: SimulationOptions | None = None,
    profile: Profile | None = None,
    plan: Sequence[Fault] | None = None,
    size: tuple[int, int, int] | None = None,
    flips: Sequence[MemoryFlip] = (),
) -> Report:
    """The case of a seed, some of it replaced; no seed draws `flips` of memory by itself. `size`: (nodes, groups,
    replicas a group); with another number of nodes the faults are those that a seed draws for that number."""
    case = draw_case(seed, nodes=size[0] if size else None)
    if size is not None:
        case = replace(case, groups=size[1], replicas=size[2])
    return run_case(
        replace(
            case,
            options=options or case.options,
            profile=profile or case.profile,
            plan=case.plan if plan is None else tuple(plan),
        ),
        flips,
    )
