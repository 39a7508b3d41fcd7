"""What this node does for clients, by group: counters since its start, and rates over the last seconds.

Invariants: a count only rises; rates are of a window that ends at the last sample, at most WINDOW_S long, so that they
cost a few additions a frame and memory for WINDOW samples. Must not know: who asks, what a group is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields

WINDOW_S = 10
"""Rates are of the last so many seconds, with a sample a second."""


@dataclass(slots=True)
class GroupLoad:
    """Bytes are of values as they travel, without headers."""

    pushes: int = 0
    """Blocks taken from push streams."""
    pushed_bytes: int = 0
    returned_bytes: int = 0
    """Of updated blocks that went back on push streams."""
    pulls: int = 0
    """Blocks sent to pulls."""
    pulled_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Rates:
    """Each a second."""

    pushes: float = 0.0
    pushed_bytes: float = 0.0
    returned_bytes: float = 0.0
    pulls: float = 0.0
    pulled_bytes: float = 0.0


NAMES = tuple(field.name for field in fields(GroupLoad))
_NOTHING = Rates()


class Load:
    """Used on the host's thread only."""

    def __init__(self) -> None:
        self._groups: dict[int, GroupLoad] = {}
        self._samples: deque[tuple[float, Mapping[int, tuple[int, ...]]]] = deque(maxlen=WINDOW_S + 1)

    def of(self, group: int) -> GroupLoad:
        """Of a group that is hosted here: there are as many as there are groups."""
        found = self._groups.get(group)
        if found is None:
            found = self._groups[group] = GroupLoad()
        return found

    def sample(self, now_s: float) -> None:
        """About once a second."""
        self._samples.append((now_s, {group: astuple(load) for group, load in self._groups.items()}))

    def rates(self, group: int) -> Rates:
        if len(self._samples) < 2:
            return _NOTHING
        (began_s, before), (ended_s, now) = self._samples[0], self._samples[-1]
        if group not in now or ended_s <= began_s:
            return _NOTHING
        known = before.get(group, (0,) * len(NAMES))
        return Rates(*((new - old) / (ended_s - began_s) for new, old in zip(now[group], known, strict=True)))
