"""Bytes of contributions that a node holds in open sums, over all its groups and models.

Owns the count. Invariants: what is taken beyond the bound is only what others wait for: a model's lowest open block is
always taken (RULES S5), so no model's ranks can wait for room that another's hold; who was turned away is called once
when there is room. Must not know: sums, streams, blocks.
"""

from __future__ import annotations

from collections.abc import Callable


class SumWindow:
    """Used on the host's thread only. At most `bytes_max`, and the lowest block of each model beside it."""

    __slots__ = ("_waiting", "bytes", "bytes_max", "bytes_most")

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes = 0
        """Taken now."""
        self.bytes_most = 0
        """The most that was ever taken."""
        self._waiting: dict[Callable[[], None], None] = {}

    def take(self, size: int, *, always: bool, later: Callable[[], None]) -> bool:
        """Room for so much. False: there is none, and `later` is called when there may be."""
        if not always and self.bytes + size > self.bytes_max:
            self._waiting[later] = None
            return False
        self.bytes += size
        self.bytes_most = max(self.bytes_most, self.bytes)
        return True

    def give(self, size: int) -> list[Callable[[], None]]:
        """So much is not held any more; whom to call now."""
        self.bytes -= size
        if not self._waiting or self.bytes >= self.bytes_max:
            return []
        waiting, self._waiting = list(self._waiting), {}
        return waiting
