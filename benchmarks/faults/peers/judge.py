"""What the records of one episode say: error or hang, how long it stood still, what was lost or counted twice.

Owns the counting. Invariant: pure; what cannot be read at the end counts as lost, unless work was done again from a
checkpoint. Must not know: systems, processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any, TypeAlias

Lines: TypeAlias = Sequence[Mapping[str, Any]]

NOTHING, ERROR, HANG, ENDED = "nothing", "error", "hang", "ended"


@dataclass(frozen=True, slots=True)
class Watched:
    """One worker's record. `ranks`: whose pushes it speaks of; `struck`: it was killed or paused itself."""

    name: str
    lines: Lines
    ranks: tuple[int, ...]
    struck: bool = False

    def times(self, event: str) -> list[float]:
        return [line["time"] for line in self.lines if line["event"] == event]

    def steps_after(self, at_s: float) -> int:
        return sum(1 for one in self.times("step") if one > at_s)

    @property
    def caught_up(self) -> bool:
        """Its last step is its furthest: what was done before a restart is done again."""
        steps = [line["step"] for line in self.lines if line["event"] == "step"]
        return bool(steps) and steps[-1] == max(steps)

    @property
    def last_sign_s(self) -> float:
        return float(self.lines[-1]["time"]) if self.lines else 0.0

    def pushed(self, event: str) -> int:
        """Distinct steps."""
        return len({line["step"] for line in self.lines if line["event"] == event})

    @property
    def final(self) -> Mapping[str, list[int]] | None:
        return next((line["counts"] for line in reversed(self.lines) if line["event"] == "final"), None)


def errors(workers: Iterable[Watched], since_s: float) -> list[tuple[float, str]]:
    """(seconds after the fault, what it was), the first of each worker that was not struck itself."""
    found = []
    for worker in workers:
        if not worker.struck:
            of_this = [line for line in worker.lines if line["event"] == "error" and line["time"] >= since_s]
            found += [(line["time"] - since_s, line["what"]) for line in of_this[:1]]
    return sorted(found)


def stall_ms(workers: Iterable[Watched], fault_s: float) -> float | None:
    """RULES F1, of the workers that were not struck: the longest time between two completed steps in a row that ends
    after the fault, less the median step. None when nobody completed a step after it."""
    gaps = [gap for worker in workers if not worker.struck for gap in pairwise(worker.times("step"))]
    around = [after - before for before, after in gaps if after >= fault_s]
    if not around:
        return None
    return max(0.0, (max(around) - median(after - before for before, after in gaps)) * 1000)


def counted(workers: Iterable[Watched]) -> dict[str, int | None]:
    """Pushes, over all ranks. `lost`: acknowledged, and not in every block in the end. `duplicated`: in some block
    more often than they were begun. None: the end could not be read."""
    acknowledged, lost, duplicated, known = 0, 0, 0, True
    for worker in workers:
        done, begun, final = worker.pushed("step"), worker.pushed("begin"), worker.final
        acknowledged += done * len(worker.ranks)
        for rank in worker.ranks:
            if final is None:
                known = False
                continue
            cells = final[str(rank)]
            lost += max(0, done - min(cells))
            duplicated += max(0, max(cells) - begun)
    return {
        "acknowledged": acknowledged,
        "lost": lost if known else None,
        "duplicated": duplicated if known else None,
    }
