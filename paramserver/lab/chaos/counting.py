"""The counting load's arithmetic: what updates a block holds, read off its weights.

Every step adds 1 to one element of each rank's part of each block, another element the next step: after v steps,
element j of a part holds how many steps below v leave the remainder j. So a lost update and a doubled one don't cancel
out, and both are numbers. Exact: sums stay far below 2^24. Invariants: pure; a weight that is no whole number counts as
one of each. Must not know: servers, processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MODEL = "counting"
RANKS = 2
BLOCK_BYTES = 4096
BLOCK_ELEMENTS = BLOCK_BYTES // 4
BLOCKS = 6
"""Two a group of a cluster of three nodes."""
PART = BLOCK_ELEMENTS // RANKS
"""Elements of a rank in each block; steps this far apart share one."""

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Count:
    """Updates of (rank, block, step) that should be there and are not, and that are there and should not be."""

    missing: int
    extra: int

    def __add__(self, other: Count) -> Count:
        return Count(self.missing + other.missing, self.extra + other.extra)


NOTHING = Count(0, 0)


def position(rank: int, step: int) -> int:
    """The element of a block to which the step adds."""
    return rank * PART + step % PART


def gradient(rank: int, step: int, out: Array) -> None:
    """For SGD with rate 1 and sums: -1 where the weight shall grow by 1. `out` [BLOCKS * BLOCK_ELEMENTS]."""
    out[:] = 0.0
    out.reshape(BLOCKS, BLOCK_ELEMENTS)[:, position(rank, step)] = -1.0


def expected(steps: int) -> npt.NDArray[np.int64]:
    """[PART]: one rank's part of a block after so many steps."""
    whole, rest = divmod(max(steps, 0), PART)
    counts = np.full(PART, whole, np.int64)
    counts[:rest] += 1
    return counts


def check(block: Array, acknowledged: Sequence[int], attempted: Sequence[int]) -> Count:
    """Of one block's weights. By rank: steps that must be in it, and steps that may."""
    found = np.nan_to_num(np.asarray(block, np.float64), nan=-1.0, posinf=2.0**40, neginf=-1.0)
    whole = np.rint(found)
    broken = int(np.count_nonzero(found != whole))
    parts = whole.astype(np.int64).reshape(RANKS, PART)
    missing = extra = broken
    for part, least, most in zip(parts, acknowledged, attempted, strict=True):
        missing += int(np.maximum(expected(least) - part, 0).sum())
        extra += int(np.maximum(part - expected(most), 0).sum())
    return Count(missing, extra)


def check_all(blocks: Sequence[Array], acknowledged: Sequence[int], attempted: Sequence[int]) -> Count:
    total = NOTHING
    for block in blocks:
        total += check(block, acknowledged, attempted)
    return total


def bounds(completed: Sequence[int], pushed: Sequence[int]) -> tuple[list[int], list[int]]:
    """What must and what may be in every block, by rank, from what each rank completed and what it began to push (steps
    counted). A step that any rank saw completed holds the updates of all; one is applied only when all pushed it."""
    acknowledged = max(completed, default=0)
    attempted = max(acknowledged, min(pushed, default=0))
    return [acknowledged] * RANKS, [attempted] * RANKS
