"""What was handed to the state machine's lane and is not in the state yet.

Owns the count. Invariant: it never falls below what waits, and is 0 when the state has reached all that was handed in,
by applying it or by a snapshot that holds it. Must not know: lanes, state machines.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from consensus.core.interface import Entry
from consensus.runtime.machine import log_bytes_of


class Backlog:
    """`bytes`: in the log, of committed entries that wait."""

    __slots__ = ("_batches", "bytes")

    def __init__(self) -> None:
        self._batches: deque[tuple[int, int]] = deque()
        """(last index, bytes) of each batch."""
        self.bytes = 0

    def add(self, entries: Sequence[Entry]) -> None:
        if entries:
            size = sum(map(log_bytes_of, entries))
            self._batches.append((entries[-1].index, size))
            self.bytes += size

    def reached(self, index: int) -> None:
        """The state holds everything up to `index`."""
        while self._batches and self._batches[0][0] <= index:
            self.bytes -= self._batches.popleft()[1]
