"""Every request gets exactly one outcome (HAZARDS 28): proposals, reads, transfers, changes of membership.

Owns the requests under way, by the life of the process they were made of. Invariants: a second outcome raises
`Violated` when it comes; a process that ended owes nothing any more. Must not know: what requests ask for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from consensus.core.interface import NodeId
from consensus.simulation.errors import Violated

T = TypeVar("T")


class Requests:
    def __init__(self) -> None:
        self._next = 0
        self._open: dict[int, tuple[NodeId, str]] = {}
        self.answered: Counter[str] = Counter()

    def begin(self, node: NodeId, what: str, done: Callable[[T], None]) -> Callable[[T], None]:
        """`done`, to be called once."""
        self._next += 1
        number = self._next
        self._open[number] = (node, what)
        finished = False

        def once(outcome: T) -> None:
            nonlocal finished
            if finished:
                raise Violated(f"node {node}: a second outcome of a {what}: {outcome}")
            finished = True
            self._open.pop(number, None)
            self.answered[f"{what}: {type(outcome).__name__}"] += 1
            done(outcome)

        return once

    def node_gone(self, node: NodeId) -> None:
        self._open = {number: one for number, one in self._open.items() if one[0] != node}

    def open(self) -> list[str]:
        return sorted({f"node {node} owes the outcome of a {what}" for node, what in self._open.values()})
