"""What a snapshot being written costs in memory: buffers that are there only because it still holds them.

Owns the count. A snapshot borrows every block: its weights and those of the version before, which nobody ever writes
again (RULES R6), and its slots, which apply must not change before they are written. A borrowed buffer costs nothing
while the state holds it too; it counts from the moment the state lets go of it (the next version, or slots that were
written elsewhere) until the block is written. Invariants: counts exactly; a block given back costs nothing and may be
changed in place again. The lane that applies and the one that writes both call, so every method locks. Must not know:
versions, commands.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from paramserver.wire.layout import Flat


class Loans:
    """Of one snapshot. Two snapshots never share one."""

    __slots__ = ("_lock", "bytes", "closed", "peak_bytes")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.bytes = 0
        self.peak_bytes = 0
        self.closed = False
        """Nobody wants the rest: nothing is borrowed any more."""

    def close(self) -> None:
        with self._lock:
            self.closed = True
            self.bytes = 0


class Loan:
    """One block, borrowed."""

    __slots__ = ("_costs", "_loans", "_shared", "returned")

    def __init__(self, loans: Loans, buffers: Iterable[Flat]) -> None:
        self._loans = loans
        self._shared = {id(buffer): buffer.nbytes for buffer in buffers}
        """Held by the state too. The snapshot holds them, so no other array has their ids meanwhile."""
        self._costs = 0
        self.returned = False

    def would_cost(self, dropped: Iterable[Flat]) -> int:
        """How many bytes more, if the state let go of these."""
        with self._loans._lock:
            if self.returned or self._loans.closed:
                return 0
            return sum(self._shared.get(key, 0) for key in {id(buffer) for buffer in dropped})

    def borrowed(self, buffers: Iterable[Flat]) -> bool:
        """Whether any of these must not be written to."""
        with self._loans._lock:
            if self.returned or self._loans.closed:
                return False
            return any(id(buffer) in self._shared for buffer in buffers)

    def dropped(self, buffers: Iterable[Flat]) -> None:
        """The state let go of these."""
        with self._loans._lock:
            if self.returned or self._loans.closed:
                return
            for buffer in buffers:
                size = self._shared.pop(id(buffer), 0)
                self._costs += size
                self._loans.bytes += size
            self._loans.peak_bytes = max(self._loans.peak_bytes, self._loans.bytes)

    def give_back(self) -> None:
        """The block is written."""
        with self._loans._lock:
            if not self.returned and not self._loans.closed:
                self._loans.bytes -= self._costs
            self.returned = True
            self._shared.clear()
