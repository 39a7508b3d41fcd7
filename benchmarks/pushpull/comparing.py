"""One case on ours and on others, side by side.

Owns which of them fit into memory at once: a peer that does not fit beside the others runs in a batch of its own, with
ours again, so that every ratio is of systems that took turns. A system that cannot run here is named, with why. Must
not know: which cases matter.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.pushpull import rows
from benchmarks.pushpull.case import Case
from benchmarks.pushpull.ours import OurOptions, Ours
from benchmarks.pushpull.peers.known import PEERS, PLAIN
from benchmarks.pushpull.system import System, SystemFailed, Unavailable
from benchmarks.pushpull.trees import available_bytes
from benchmarks.pushpull.turns import Effort, Turns, interleaved
from paramserver.lab.errors import LabError

MEMORY_SHARE = 0.75
"""Of what is available, for all that runs side by side."""


@dataclass(slots=True)
class Found:
    """What goes into the result."""

    rows: list[rows.Row] = field(default_factory=list)
    ratios: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    peers: dict[str, str] = field(default_factory=dict)

    def add(self, other: Found) -> None:
        self.rows += other.rows
        self.ratios |= other.ratios
        self.missing |= other.missing
        self.peers |= other.peers

    def add_row(self, row: rows.Row) -> None:
        """A run takes minutes: show what there is."""
        print(f"row: {row}", file=sys.stderr, flush=True)
        self.rows.append(row)


Make = Callable[[], System]


def compare(
    case: Case, options: OurOptions, *, peers: Sequence[str] = (), against_one: bool = False, effort: Effort
) -> Found:
    """Rows and ratios of ours, of ours with one replica if `against_one`, and of each peer."""
    found = Found()
    others: dict[str, tuple[Make, int]] = {}
    if against_one and options.replicas != 1:
        single = replace(options, replicas=1)
        others["paramserver, one replica"] = (lambda: Ours(case, single), Ours.resident_bytes(case) // 2)
    for name in dict.fromkeys(one for peer in peers for one in (peer, PLAIN.get(peer, peer))):
        kind = PEERS[name]
        if case.codec not in kind.codecs:
            found.missing[f"{name} {case.codec}"] = f"it is measured with {' and '.join(kind.codecs)} only"
        else:
            others[name] = ((lambda kind=kind: kind(case)), kind.resident_bytes(case))
    sizes = {name: size for name, (_, size) in others.items()}
    batches = fitting(sizes, Ours.resident_bytes(case), MEMORY_SHARE * available_bytes())
    shown = False
    logged = {} if options.log_codec == "fp32" else {"log_codec": options.log_codec}
    for batch in batches:
        ours, turns = side_by_side(
            lambda: Ours(case, options), {name: others[name][0] for name in batch}, effort, found, case.name
        )
        if ours is None:
            break
        if not shown:
            found.add_row(rows.row(ours, **logged))
            shown = True
        for one in turns:
            found.add_row(rows.row(one))
            if one.system.name in PEERS:
                found.peers |= PEERS[one.system.name].versions()
        found.ratios |= rows.ratios(ours, turns)
    return found


def fitting(sizes: Mapping[str, int], base: int, room: float) -> list[list[str]]:
    """Batches of names, in order, each of which fits into `room` bytes beside `base`; one that never fits is alone."""
    batches: list[list[str]] = [[]]
    used = base
    for name, size in sizes.items():
        if batches[-1] and used + size > room:
            batches.append([])
            used = base
        batches[-1].append(name)
        used += size
    return batches


def side_by_side(
    make_ours: Make, others: Mapping[str, Make], effort: Effort, found: Found, what: str
) -> tuple[Turns | None, list[Turns]]:
    """Ours (None when it cannot run here) and those of the others that could be measured; why the rest could not goes
    into `found.missing`."""
    systems: list[System] = []
    first: System | None = None
    try:
        for name, make in {"paramserver": make_ours, **others}.items():
            try:
                system = make()
                systems.append(system)
                system.start()
            except Unavailable as why:
                found.missing[f"{name} {what}"] = str(why)
                if name == "paramserver":
                    return None, []
            except (SystemFailed, LabError) as error:
                if name == "paramserver":
                    raise
                found.missing[f"{name} {what}"] = str(error)
                systems.remove(system)
                system.close()
            else:
                first = first or system
        turns = interleaved(systems, effort)
    finally:
        for system in systems:
            system.close()
    ours = next(one for one in turns if one.system is first)
    if not ours.turns:
        raise SystemFailed(ours.failure)
    good = []
    for one in turns:
        if one.failure:
            found.missing[f"{one.system.name} {what}"] = one.failure
        if one is not ours and one.turns:
            good.append(one)
    return ours, good


def measured(system: System, effort: Effort, **more: Any) -> rows.Row:
    """One system alone, started here."""
    with system:
        (turns,) = interleaved([system], effort)
        if not turns.turns:
            raise SystemFailed(turns.failure)
        return rows.row(turns, **more)
