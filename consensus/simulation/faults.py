"""Which faults come when: a plan drawn from a seed before the run begins.

Owns kinds of faults and their drawing. Invariant: a plan is a value; whoever is meant by "the leader" is decided when
the fault comes. Must not know: how faults are carried out (cluster.py does).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

from consensus.core.interface import GroupId, NodeId


class FaultKind(Enum):
    KILL = "kill"
    """The process ends at once; what it wrote stays in the page cache."""
    POWER = "power cut"
    """The machine ends: what was not synced is lost, or torn."""
    POWER_DURING_IO = "power cut during io"
    """The same, in the middle of one of the next IO calls."""
    SYNC_FAILS = "failing sync"
    """The next sync fails; the process must end by itself."""
    PAUSE = "pause"
    """SIGSTOP, then SIGCONT; connections stand."""
    CUT = "cut"
    """Nothing passes on some links, in the given direction; connections stand until a keepalive notices."""
    RESET = "reset"
    """Connections close, and come back."""
    CLOG = "clog"
    """What is sent over some links is late."""
    SLOW_DISK = "slow disk"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """`leader_of`: the leading node of that group is meant, in addition to `nodes`. `links` are (from, to).
    `for_ms`: after that long it is undone (restarted, resumed, healed)."""

    at_ms: int
    kind: FaultKind
    for_ms: int
    nodes: tuple[NodeId, ...] = ()
    leader_of: GroupId | None = None
    links: tuple[tuple[NodeId, NodeId], ...] = ()
    ambush_ms: int | None = None
    """Lies in wait from `at_ms` on: comes so long after the next election in the group of `leader_of`."""
    amount: int = 0
    """IO calls until the power cut; extra delay in ms of a clogged link or a slow disk."""

    def describe(self) -> str:
        parts = [self.kind.value]
        if self.nodes:
            parts.append("nodes " + " ".join(map(str, self.nodes)))
        if self.leader_of is not None:
            wait = "" if self.ambush_ms is None else f" {self.ambush_ms} ms after its election"
            parts.append(f"leader of group {self.leader_of}{wait}")
        if self.links:
            parts.append("links " + " ".join(f"{a}>{b}" for a, b in self.links))
        if self.amount:
            parts.append(f"amount {self.amount}")
        return f"{', '.join(parts)}, for {self.for_ms} ms"


_KINDS = (
    (FaultKind.KILL, 5),
    (FaultKind.POWER, 4),
    (FaultKind.POWER_DURING_IO, 4),
    (FaultKind.SYNC_FAILS, 1),
    (FaultKind.PAUSE, 3),
    (FaultKind.CUT, 5),
    (FaultKind.RESET, 2),
    (FaultKind.CLOG, 2),
    (FaultKind.SLOW_DISK, 1),
)


def draw_faults(
    source: random.Random,
    *,
    nodes: tuple[NodeId, ...],
    groups: tuple[GroupId, ...],
    duration_ms: int,
    from_ms: int = 0,
) -> tuple[Fault, ...]:
    """Faults between `from_ms` and `duration_ms`, in order; they may overlap and may stop a majority, or all."""
    gap_ms = source.choice((150, 500, 1500))
    only = source.choice((None, None, None, FaultKind.POWER, FaultKind.CUT, FaultKind.KILL))
    plan = []
    at_ms = from_ms + source.randrange(50, 600)
    while at_ms < duration_ms:
        kind = only or source.choices([kind for kind, _ in _KINDS], [weight for _, weight in _KINDS])[0]
        plan.append(_draw(source, kind, at_ms, nodes, groups))
        at_ms += source.randrange(20, 2 * gap_ms)
    return tuple(plan)


def _draw(
    source: random.Random, kind: FaultKind, at_ms: int, nodes: tuple[NodeId, ...], groups: tuple[GroupId, ...]
) -> Fault:
    if kind is FaultKind.CUT:
        return Fault(at_ms=at_ms, kind=kind, links=_draw_cut(source, nodes), for_ms=_draw_length(source))
    if kind in (FaultKind.RESET, FaultKind.CLOG):
        links = tuple(link for link in _all_links(nodes) if source.random() < 0.4)
        return Fault(at_ms=at_ms, kind=kind, links=links, for_ms=_draw_length(source), amount=source.randrange(5, 800))
    amount = {FaultKind.POWER_DURING_IO: source.randrange(1, 40), FaultKind.SLOW_DISK: source.randrange(20, 1000)}
    leader_of: GroupId | None = None
    hit: tuple[NodeId, ...] = ()
    if source.random() < 0.5:
        leader_of = source.choice(groups)
    else:
        everything = kind in (FaultKind.POWER, FaultKind.KILL) and source.random() < 0.2
        several = source.randrange(1, len(nodes) // 2 + 2) if source.random() < 0.3 else 1
        hit = nodes if everything else tuple(sorted(source.sample(nodes, several)))
    ambush = leader_of is not None and source.random() < 0.4
    return Fault(
        at_ms=at_ms,
        kind=kind,
        nodes=hit,
        leader_of=leader_of,
        ambush_ms=source.randrange(0, 60) if ambush else None,
        for_ms=_draw_length(source),
        amount=amount.get(kind, 0),
    )


def _draw_length(source: random.Random) -> int:
    """Shorter than an election, about one, much longer."""
    shortest, below = source.choice(((1, 100), (1, 100), (100, 800), (100, 800), (800, 2500)))
    return source.randrange(shortest, below)


def _all_links(nodes: tuple[NodeId, ...]) -> list[tuple[NodeId, NodeId]]:
    return [(a, b) for a in nodes for b in nodes if a != b]


def _draw_cut(source: random.Random, nodes: tuple[NodeId, ...]) -> tuple[tuple[NodeId, NodeId], ...]:
    """A partition in two, one node alone, one direction only, a chain, or any links."""
    links = _all_links(nodes)
    shape = source.choice(("halves", "halves", "alone", "one-way", "chain", "some"))
    if shape == "halves":
        side = set(source.sample(nodes, max(1, len(nodes) // 2)))
        return tuple((a, b) for a, b in links if (a in side) != (b in side))
    if shape == "alone":
        alone = source.choice(nodes)
        return tuple((a, b) for a, b in links if alone in (a, b))
    if shape == "one-way":
        alone, outwards = source.choice(nodes), source.random() < 0.5
        return tuple((a, b) for a, b in links if (a if outwards else b) == alone)
    if shape == "chain":
        order = source.sample(nodes, len(nodes))
        kept = {link for a, b in pairwise(order) for link in ((a, b), (b, a))}
        return tuple(link for link in links if link not in kept)
    return tuple(link for link in links if source.random() < 0.4)


def last_end_ms(plan: tuple[Fault, ...]) -> int:
    return max((fault.at_ms + fault.for_ms for fault in plan), default=0)
