"""Proposals that wait for their outcome.

Owns them. Invariant: each gets exactly one outcome (HAZARDS 28): `Committed` when its own entry was applied here,
`Unknown` when leadership ended first. Must not know: the core, lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from consensus.runtime.interface import Applied, Committed, Outcome, Unknown

Done: TypeAlias = Callable[[Outcome], None]


class Proposals:
    """Of one group, all of one term of leadership."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[int, Done]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, term: int, index: int, done: Done) -> None:
        self._waiting[index] = (term, done)

    def applied(self, batch: Sequence[Applied]) -> None:
        """Entries were applied; those proposed here are answered, in order."""
        if not self._waiting:
            return
        for entry in batch:
            found = self._waiting.pop(entry.index, None)
            if found is None:
                continue
            term, done = found
            if term == entry.term:
                done(Committed(entry.term, entry.index, entry.result))
            else:
                done(Unknown(term, entry.index))

    def forget(self) -> None:
        """Leadership ended: what was proposed may or may not be applied some day."""
        waiting, self._waiting = self._waiting, {}
        for index, (term, done) in waiting.items():
            done(Unknown(term, index))
