"""One seed, one run: the door to the simulator.

Owns nothing but the way from a case to its report. Must not know: how any of it is carried out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from consensus.simulation.case import Case, draw_case
from consensus.simulation.cluster import Cluster, SimulationOptions
from consensus.simulation.faults import Fault
from consensus.simulation.load import LedgerLoad
from consensus.simulation.profile import Profile
from consensus.simulation.report import Report
from consensus.simulation.wire import through_codec


def run_case(case: Case) -> Report:
    """Clients of ledgers on a cluster with faults. The same case gives the same report, trace hash included."""
    cluster = Cluster(
        seed=case.seed,
        nodes=case.node_ids,
        groups=case.specs(),
        application=LedgerLoad(seed=case.seed, clients=case.clients, commands=case.commands),
        profile=case.profile,
        plan=case.plan,
        options=case.options,
        wire=through_codec if case.profile.codec else None,
        administrator=True,
        hasty=case.hasty,
    )
    return cluster.run()


def run_seed(
    seed: int,
    *,
    options: SimulationOptions | None = None,
    profile: Profile | None = None,
    plan: Sequence[Fault] | None = None,
    size: tuple[int, int, int] | None = None,
) -> Report:
    """The case of a seed, some of it replaced. `size`: (nodes, groups, replicas a group); with another number of nodes
    the faults are those that a seed draws for that number. With a plan of its own, durability is `fsync` unless the
    options say otherwise."""
    case = draw_case(seed, nodes=size[0] if size else None)
    if plan is not None:
        case = replace(case, options=replace(case.options, replicated=False))
    if size is not None:
        case = replace(case, groups=size[1], replicas=size[2])
    return run_case(
        replace(
            case,
            options=options or case.options,
            profile=profile or case.profile,
            plan=case.plan if plan is None else tuple(plan),
        )
    )
