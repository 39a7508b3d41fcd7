"""Sums over a fixed binary tree of ranks (RULES S4).

Float addition is not associative, and promise P4 wants the same bits whatever order contributions come in. So the order
of additions is a function of the number of ranks alone: a node over ranks [a, b) splits at a + the largest power of two
below b - a; its sum is left + right. Neighbours are added as soon as both are there. An empty contribution is left out
(x + nothing = x), not added as zeros, so -0.0 stays what it is. Contributions come as they were sent: an encoded one is
decoded a piece at a time, where it is added.

Invariants: same set of (rank, values) -> same bits in any order of arrival; given values are never written to. Must not
know: steps, streams, threads (one `TreeSum` is used by one thread at a time).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from paramserver.wire import codecs
from paramserver.wire.codecs import Values
from paramserver.wire.layout import FLOAT, Flat
from paramserver.wire.spec import RANKS_MAX


@dataclass(frozen=True, slots=True)
class Node:
    """One node of the tree; a leaf has `left` and `right` of -1. Indices are into `tree(ranks)`."""

    left: int
    right: int
    parent: int


@lru_cache(maxsize=RANKS_MAX)
def tree(ranks: int) -> tuple[Node, ...]:
    """The tree over that many ranks: nodes 0..ranks-1 are the leaves by rank, the last node is the root."""
    if not 1 <= ranks <= RANKS_MAX:
        raise ValueError(f"ranks: expected 1 to {RANKS_MAX}, received {ranks}")
    children: list[tuple[int, int]] = [(-1, -1)] * ranks
    parents = [-1] * ranks

    def build(first: int, last: int) -> int:
        count = last - first
        if count == 1:
            return first
        half = 1 << ((count - 1).bit_length() - 1)
        left, right = build(first, first + half), build(first + half, last)
        children.append((left, right))
        parents.append(-1)
        parents[left] = parents[right] = len(children) - 1
        return len(children) - 1

    build(0, ranks)
    return tuple(Node(left, right, parent) for (left, right), parent in zip(children, parents, strict=True))


@dataclass(slots=True)
class _Partial:
    """Sum of a subtree; `values` None: all of it was empty. `owned`: our buffer that they are in."""

    values: Values | None
    owned: Flat | None = None


class TreeSum:
    """The open sum of one block: at most ceil(ranks / 2) given buffers and as many partial sums are held."""

    __slots__ = ("_nodes", "_partials", "_root")

    def __init__(self, ranks: int) -> None:
        self._nodes = tree(ranks)
        self._partials: dict[int, _Partial] = {}
        self._root: Flat | None = None

    def add(self, rank: int, values: Values | None, out: Flat | None = None) -> bool:
        """Take the contribution of a rank, None for an empty one; True when every rank's is in. A rank's second
        contribution is a ValueError: who calls knows whom it has. `out`: where the sum goes if this completes it,
        without a further copy."""
        if out is not None:
            self._root = out
        node = rank
        if not 0 <= rank < self._leaves() or self._covered(rank):
            raise ValueError(f"rank {rank} is unknown or has contributed")
        partial = _Partial(values)
        while (parent := self._nodes[node].parent) >= 0:
            left, right = self._nodes[parent].left, self._nodes[parent].right
            other = self._partials.pop(right if node == left else left, None)
            if other is None:
                break
            pair = (partial, other) if node == left else (other, partial)
            partial = self._combine(*pair, final=self._nodes[parent].parent < 0)
            node = parent
        self._partials[node] = partial
        return self.complete

    @property
    def complete(self) -> bool:
        return len(self._nodes) - 1 in self._partials

    @property
    def empty(self) -> bool:
        """Complete, and no rank contributed values."""
        root = self._partials.get(len(self._nodes) - 1)
        return root is not None and root.values is None

    def finish(self, out: Flat) -> Flat:
        """The complete sum in `out`. Copies only where the last addition did not write there (one rank, or a root with
        one side empty)."""
        root = self._partials[len(self._nodes) - 1]
        if root.values is None:
            out.fill(0.0)
        elif root.values is not out:
            codecs.floats(root.values, out)
        return out

    def _combine(self, left: _Partial, right: _Partial, *, final: bool) -> _Partial:
        if left.values is None:
            return right
        if right.values is None:
            return left
        if final and self._root is not None:
            target = self._root
        elif left.owned is not None:
            target = left.owned
        elif right.owned is not None:
            target = right.owned
        else:
            target = np.empty(left.values.size, FLOAT)
        codecs.add(left.values, right.values, target)
        return _Partial(target, owned=target)

    def _leaves(self) -> int:
        return (len(self._nodes) + 1) // 2

    def _covered(self, rank: int) -> bool:
        node = rank
        while node >= 0:
            if node in self._partials:
                return True
            node = self._nodes[node].parent
        return False


def tree_sum(contributions: list[Flat]) -> Flat:
    """The sum by definition, for tests and reference runs: one contribution a rank, in rank order."""
    total = TreeSum(len(contributions))
    for rank, values in enumerate(contributions):
        total.add(rank, values)
    return total.finish(np.empty(contributions[0].shape, FLOAT))
