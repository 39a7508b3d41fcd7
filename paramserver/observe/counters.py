"""Counters of a server, by name.

Invariants: names are written in the code, never taken from input, so there are few; a count only rises. Must not know:
who reads them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping


class Counters:
    """Used on the host's thread only. `include` adds the counts that another room keeps for itself."""

    def __init__(self) -> None:
        self._own: Counter[str] = Counter()
        self._others: list[tuple[str, Callable[[], Mapping[str, int]]]] = []

    def add(self, name: str, count: int = 1) -> None:
        self._own[name] += count

    def include(self, prefix: str, counts: Callable[[], Mapping[str, int]]) -> None:
        self._others.append((prefix, counts))

    def all(self) -> dict[str, int]:
        values = dict(self._own)
        for prefix, counts in self._others:
            for name, count in counts().items():
                key = f"{prefix}{name}"
                values[key] = values.get(key, 0) + count
        return values
