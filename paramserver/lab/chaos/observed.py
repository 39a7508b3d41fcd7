"""What the load of a stage wrote down: plain values that verdicts are made of.

Times are seconds of CLOCK_MONOTONIC. Must not know: processes, files, faults.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ErrorSeen:
    """An exception of a worker's client."""

    time_s: float
    name: str
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Read:
    """A linearizable read that ended well. `node` 0: through the public client. `behind`: blocks older than what was
    acknowledged, or read by others, before it began; `missing`, `extra`: updates, as `counting` tells."""

    begun_s: float
    ended_s: float
    node: int
    behind: int
    missing: int
    extra: int

    @property
    def stale(self) -> bool:
        return self.behind > 0 or self.missing > 0


@dataclass(frozen=True, slots=True)
class Refusal:
    begun_s: float
    ended_s: float
    node: int
    name: str


@dataclass(frozen=True, slots=True)
class Digests:
    """Of the digits' blocks, each at its version. `node` 0: whichever replica the client chose."""

    time_s: float
    versions: tuple[int, ...]
    digests: tuple[str, ...]
    node: int = 0
    blocks: tuple[int, ...] = ()
    """Which; empty: all in order."""

    def each(self) -> list[tuple[int, int, str]]:
        """(block, version, digest)"""
        numbers = self.blocks or tuple(range(len(self.versions)))
        return list(zip(numbers, self.versions, self.digests, strict=True))


@dataclass(frozen=True, slots=True)
class Counted:
    """What a look at the counting model found at one moment: by a worker in the weights that came back, or on a
    replica (`node`)."""

    time_s: float
    missing: int
    extra: int
    node: int = 0


@dataclass(slots=True)
class Worker:
    """One rank over all its starts. `pushed`: steps that it began to push."""

    load: str
    rank: int
    times: list[float] = field(default_factory=list)
    """Of completed steps, ascending."""
    steps: int = 0
    """Completed: the highest and one."""
    pushed: int = 0
    errors: list[ErrorSeen] = field(default_factory=list)
    counted: list[Counted] = field(default_factory=list)

    def completed(self, step: int, time_s: float, missing: int = 0, extra: int = 0) -> None:
        insort(self.times, time_s)
        self.steps = max(self.steps, step + 1)
        if missing or extra:
            self.counted.append(Counted(time_s, missing, extra))

    def count(self, start_s: float, end_s: float = float("inf")) -> int:
        """Steps completed in [start, end)."""
        return bisect_left(self.times, end_s) - bisect_left(self.times, start_s)


@dataclass(slots=True)
class Observed:
    workers: list[Worker] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    digests: list[Digests] = field(default_factory=list)
    replicas: list[Counted] = field(default_factory=list)
    """Looks at the counting model, replica by replica."""

    def worker(self, load: str, rank: int) -> Worker:
        """Found, or added."""
        for one in self.workers:
            if (one.load, one.rank) == (load, rank):
                return one
        self.workers.append(Worker(load, rank))
        return self.workers[-1]

    def loads(self) -> list[str]:
        return list(dict.fromkeys(one.load for one in self.workers))
