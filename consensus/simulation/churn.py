"""Cases in which members change all the time, and faults lie in wait for the moments in which that hurts.

Owns the drawing of such a case: small groups on more nodes than they need, changes one after the other, often of two
voters at once, and storms made for one kind of mistake each: a group that is torn apart while it is in a joint
configuration; a leader that comes back after others went on without it; acknowledged entries whose last copies go.
Invariant: as in case.py, a case is a value and one of many that could be drawn. Must not know: how it is run.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from consensus.core.interface import GroupId
from consensus.simulation.case import Case, draw_options
from consensus.simulation.faults import Fault, FaultKind, Moment
from consensus.simulation.plans import draw_faults, draw_length
from consensus.simulation.profile import draw_profile
from consensus.simulation.schedule import stream

Storm = Callable[[random.Random, int, GroupId], Fault]
LOAD_MS = (2500, 3500)
NODES = (3, 4, 4, 5, 5, 6)
AIMED = (
    FaultKind.KILL,
    FaultKind.KILL,
    FaultKind.POWER,
    FaultKind.PAUSE,
    FaultKind.STALL,
    FaultKind.TRANSFER,
    FaultKind.SPLIT,
    FaultKind.SPLIT,
    FaultKind.SPLIT,
)
"""At somebody who changes members."""


def draw_churn_case(seed: int, *, nodes: int | None = None) -> Case:
    """The swarm of settings of a seed, for ledgers whose members change."""
    source = stream(seed, "churn case")
    count = nodes or source.choice(NODES)
    options = replace(draw_options(source, seed), load_ms=source.choice(LOAD_MS))
    storm = source.choice((*STORMS, *STORMS, None))
    # Who is to go on without a leader, or with a damaged replica, has to be three.
    sizes = (1, 2, 3, 3, 3, 3) if storm in (None, _aim) else (3, 3, 3, 5)
    case = Case(
        seed=seed,
        nodes=count,
        groups=source.choice((1, 1, 2)),
        replicas=min(count, source.choice(sizes)),
        profile=draw_profile(source),
        plan=(),
        clients=4,
        options=options,
        hasty=True,
    )
    gap_ms = source.choice((120, 250, 500)) if storm in (None, _aim) else source.choice((300, 1000))
    plan = _draw_changes(source, case.group_ids, options.load_ms, gap_ms)
    plan += _draw_storm(source, case.group_ids, options.load_ms, storm)
    if source.random() < 0.3:
        plan += draw_faults(
            source, nodes=case.node_ids, groups=case.group_ids, duration_ms=options.load_ms, administrator=True
        )
    return replace(case, plan=tuple(sorted(plan, key=lambda fault: fault.at_ms)))


def _draw_changes(source: random.Random, groups: tuple[GroupId, ...], duration_ms: int, gap_ms: int) -> list[Fault]:
    """One change of members after the other; now and then right after an election."""
    plan, at_ms = [], source.randrange(50, 500)
    while at_ms < duration_ms:
        at_once = source.random() < 0.2
        plan.append(
            Fault(
                at_ms=at_ms,
                kind=FaultKind.MEMBERS,
                leader_of=source.choice(groups),
                ambush_ms=source.randrange(0, 8) if at_once else None,
                for_ms=1,
                amount=source.randrange(1, 1 << 20),
            )
        )
        at_ms += source.randrange(20, 2 * gap_ms)
    return plan


def _draw_storm(
    source: random.Random, groups: tuple[GroupId, ...], duration_ms: int, storm: Storm | None
) -> list[Fault]:
    """Faults of one kind of storm, or of all."""
    plan: list[Fault] = []
    at_ms = source.randrange(300, 800)
    while at_ms < duration_ms:
        fault = (storm or source.choice(STORMS))(source, at_ms, source.choice(groups))
        plan.append(fault)
        at_ms += source.randrange(20, 400) if fault.ambush_ms is not None else source.randrange(400, 1500)
    return plan


def _aim(source: random.Random, at_ms: int, group: GroupId) -> Fault:
    """At the leader, or along old and new majorities, as a joint configuration begins or ends."""
    return Fault(
        at_ms=at_ms,
        kind=source.choice(AIMED),
        leader_of=group,
        ambush_ms=source.choice((0, source.randrange(0, 4), source.randrange(0, 30))),
        moment=source.choice((Moment.JOINT, Moment.JOINT, Moment.FINAL, Moment.ELECTION)),
        for_ms=draw_length(source),
        amount=source.randrange(1, 1 << 20),
    )


def _make_stale(source: random.Random, at_ms: int, group: GroupId) -> Fault:
    """The leader does nothing for about as long as others need to go on without it; clients keep asking it."""
    kind = source.choice((FaultKind.PAUSE, FaultKind.PAUSE, FaultKind.STALL))
    return Fault(at_ms=at_ms, kind=kind, leader_of=group, for_ms=source.randrange(350, 900))


def _take_last_copies(source: random.Random, at_ms: int, group: GroupId) -> Fault:
    return Fault(
        at_ms=at_ms,
        kind=FaultKind.LAST_COPIES,
        leader_of=group,
        for_ms=source.randrange(300, 600),
        amount=source.randrange(1, 1 << 20),
    )


STORMS: tuple[Storm, ...] = (_aim, _make_stale, _take_last_copies)
