"""At most so many bytes a second.

Owns when the next piece may go. Invariant: over any time longer than a burst the rate is kept. Must not know: of what.
"""

from __future__ import annotations

BURST_MS = 100
"""What was not used may be made up for, up to this."""


class Pace:
    """`bytes_per_s` 0: no limit."""

    __slots__ = ("_bytes_per_s", "_free_at_ms")

    def __init__(self, bytes_per_s: int) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_at_ms = 0.0

    def may(self, now_ms: int) -> bool:
        return not self._bytes_per_s or now_ms >= self._free_at_ms

    def took(self, size: int, now_ms: int) -> None:
        if self._bytes_per_s:
            self._free_at_ms = max(self._free_at_ms, now_ms - BURST_MS) + 1000 * size / self._bytes_per_s
