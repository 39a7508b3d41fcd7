"""Which faults come when: a plan drawn from a seed before the run begins.

Owns the drawing. Invariants: a plan is a value, decided by the source of randomness alone; each plan knows only some
kinds of faults, often few (swarm testing: what hides a bug is often another fault that resets everything). Must not
know: how faults are carried out.
"""

from __future__ import annotations

import random
from itertools import pairwise

from consensus.core.interface import GroupId, NodeId
from consensus.simulation.faults import Fault, FaultKind

Links = tuple[tuple[NodeId, NodeId], ...]

WEIGHTS = {
    FaultKind.KILL: 5,
    FaultKind.KILL_POWER: 3,
    FaultKind.POWER: 4,
    FaultKind.POWER_DURING_IO: 4,
    FaultKind.RESTART_ALL: 1,
    FaultKind.SYNC_FAILS: 2,
    FaultKind.WRITE_FAILS: 2,
    FaultKind.PAUSE: 3,
    FaultKind.STALL: 2,
    FaultKind.CLOCK: 1,
    FaultKind.CLOCK_JUMP: 1,
    FaultKind.CUT: 5,
    FaultKind.RESET: 2,
    FaultKind.CLOG: 3,
    FaultKind.SLOW_DISK: 2,
    FaultKind.FLIP: 3,
    FaultKind.MISDIRECT: 1,
    FaultKind.SNAPSHOT: 2,
    FaultKind.RECEIVER: 3,
    FaultKind.CLIENTS: 2,
    FaultKind.FULL_DISK: 2,
    FaultKind.TRANSFER: 3,
    FaultKind.MEMBERS: 6,
    FaultKind.WIPE: 2,
}
"""Kinds that a plan may hold, and how often each comes where all are on."""
HOUR_MS = 3_600_000
NEED_ADMINISTRATOR = frozenset({FaultKind.MEMBERS, FaultKind.WIPE})


def draw_kinds(source: random.Random, *, administrator: bool = False) -> tuple[FaultKind, ...]:
    """The kinds that are on: all, one alone, or any. `administrator`: the cluster has one."""
    known = [kind for kind in WEIGHTS if administrator or kind not in NEED_ADMINISTRATOR]
    how = source.choice(("all", "alone", "some", "some", "some"))
    if how == "all":
        return tuple(known)
    if how == "alone":
        return (source.choices(known, [WEIGHTS[kind] for kind in known])[0],)
    chosen = tuple(kind for kind in known if source.random() < 0.45)
    return chosen or (FaultKind.KILL,)


def draw_faults(
    source: random.Random,
    *,
    nodes: tuple[NodeId, ...],
    groups: tuple[GroupId, ...],
    duration_ms: int,
    from_ms: int = 0,
    administrator: bool = False,
) -> tuple[Fault, ...]:
    """Faults between `from_ms` and `duration_ms`, in order; they may overlap and may stop a majority, or all."""
    kinds = draw_kinds(source, administrator=administrator)
    weights = [WEIGHTS[kind] for kind in kinds]
    gap_ms = source.choice((150, 500, 1500))
    plan: list[Fault] = []
    at_ms = from_ms + source.randrange(50, 600)
    while at_ms < duration_ms:
        kind = source.choices(kinds, weights)[0]
        plan += _draw(source, kind, at_ms, nodes, groups)
        at_ms += source.randrange(20, 2 * gap_ms)
    return tuple(plan)


def _draw(
    source: random.Random, kind: FaultKind, at_ms: int, nodes: tuple[NodeId, ...], groups: tuple[GroupId, ...]
) -> list[Fault]:
    if kind is FaultKind.CUT:
        return [Fault(at_ms=at_ms, kind=kind, links=_draw_cut(source, nodes), for_ms=draw_length(source))]
    if kind is FaultKind.CLOG and source.random() < 0.5:
        return _draw_storm(source, at_ms, nodes)
    if kind is FaultKind.TRANSFER and source.random() < 0.3:
        return _draw_transfers(source, at_ms, groups)
    if kind in (FaultKind.RESET, FaultKind.CLOG):
        links = tuple(link for link in _all_links(nodes) if source.random() < 0.4)
        amount = source.randrange(5, 800)
        return [Fault(at_ms=at_ms, kind=kind, links=links, for_ms=draw_length(source), amount=amount)]
    leader_of: GroupId | None = None
    hit: tuple[NodeId, ...] = ()
    if kind is FaultKind.RESTART_ALL:
        hit = nodes
    elif kind in (FaultKind.TRANSFER, FaultKind.MEMBERS) or source.random() < 0.5:
        leader_of = source.choice(groups)
    else:
        everything = kind in (FaultKind.POWER, FaultKind.KILL) and source.random() < 0.2
        several = source.randrange(1, len(nodes) // 2 + 2) if source.random() < 0.3 else 1
        hit = nodes if everything else tuple(sorted(source.sample(nodes, min(several, len(nodes)))))
    ambush = leader_of is not None and source.random() < 0.4
    fault = Fault(
        at_ms=at_ms,
        kind=kind,
        nodes=hit,
        leader_of=leader_of,
        ambush_ms=source.randrange(0, 60) if ambush else None,
        for_ms=draw_length(source),
        amount=_draw_amount(source, kind),
    )
    return [fault]


def _draw_amount(source: random.Random, kind: FaultKind) -> int:
    if kind in (FaultKind.POWER_DURING_IO, FaultKind.WRITE_FAILS):
        return source.randrange(1, 40)
    if kind is FaultKind.SLOW_DISK:
        return source.choice((source.randrange(20, 1000), source.randrange(1000, 5000)))
    if kind is FaultKind.CLOCK:
        return source.choice((-900_000, -300_000, -5000, 5000, 300_000, 1_000_000))
    if kind is FaultKind.CLOCK_JUMP:
        return source.choice((120, 400, 3000, 60_000, HOUR_MS, 5 * HOUR_MS))
    if kind is FaultKind.FULL_DISK:
        return source.choice((0, 20_000, 100_000))
    plain = (FaultKind.KILL, FaultKind.POWER, FaultKind.SYNC_FAILS, FaultKind.PAUSE, FaultKind.STALL)
    return 0 if kind in plain else source.randrange(1, 1 << 20)


def draw_length(source: random.Random) -> int:
    """Shorter than an election, about one, much longer."""
    shortest, below = source.choice(((1, 100), (1, 100), (100, 800), (100, 800), (800, 2500)))
    return source.randrange(shortest, below)


def _all_links(nodes: tuple[NodeId, ...]) -> list[tuple[NodeId, NodeId]]:
    return [(a, b) for a in nodes for b in nodes if a != b]


def _draw_storm(source: random.Random, at_ms: int, nodes: tuple[NodeId, ...]) -> list[Fault]:
    """Links clogged one by one, and released in another order (FAULTS 14)."""
    links = _all_links(nodes)
    source.shuffle(links)
    faults = []
    for link in links[: source.randrange(1, len(links) + 1) if links else 0]:
        amount = source.choice((50, 400, 2000))
        faults.append(Fault(at_ms=at_ms, kind=FaultKind.CLOG, links=(link,), for_ms=draw_length(source), amount=amount))
        at_ms += source.randrange(5, 60)
    return faults


def _draw_transfers(source: random.Random, at_ms: int, groups: tuple[GroupId, ...]) -> list[Fault]:
    """One hand-over after the other, faster than elections."""
    faults = []
    for _ in range(source.randrange(3, 12)):
        faults.append(
            Fault(
                at_ms=at_ms,
                kind=FaultKind.TRANSFER,
                leader_of=source.choice(groups),
                for_ms=draw_length(source),
                amount=_draw_amount(source, FaultKind.TRANSFER),
            )
        )
        at_ms += source.randrange(1, 120)
    return faults


def _draw_cut(source: random.Random, nodes: tuple[NodeId, ...]) -> Links:
    """A partition in two, one node alone, one direction only, a bridge, a chain, or any links."""
    links = _all_links(nodes)
    shape = source.choice(("halves", "halves", "alone", "one-way", "one-way halves", "bridge", "chain", "some"))
    if shape in ("halves", "one-way halves"):
        side = set(source.sample(nodes, max(1, len(nodes) // 2)))
        one_way = shape != "halves"
        return tuple((a, b) for a, b in links if (a in side) != (b in side) and (a in side or not one_way))
    if shape == "alone":
        alone = source.choice(nodes)
        return tuple((a, b) for a, b in links if alone in (a, b))
    if shape == "one-way":
        alone, outwards = source.choice(nodes), source.random() < 0.5
        return tuple((a, b) for a, b in links if (a if outwards else b) == alone)
    if shape == "bridge":
        # Two halves that see each other through one node alone (FAULTS 13).
        bridge, *others = source.sample(nodes, len(nodes))
        side = set(others[: len(others) // 2])
        return tuple((a, b) for a, b in links if bridge not in (a, b) and (a in side) != (b in side))
    if shape == "chain":
        order = source.sample(nodes, len(nodes))
        kept = {link for a, b in pairwise(order) for link in ((a, b), (b, a))}
        return tuple(link for link in links if link not in kept)
    return tuple(link for link in links if source.random() < 0.4)
