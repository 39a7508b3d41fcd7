"""A wall clock that jumps and drifts, in this process alone.

Nothing of ours reads the wall clock but the time of log lines; should something begin to, it meets these jumps, for
`time.time` and `time.time_ns` are replaced. The monotonic clock, by which everything here waits, is never touched, as
the kernel's is not when somebody sets the clock. gRPC's Python half keeps the real one: it computes deadlines that its
C half compares with the kernel's clock, which really jumps with it.

Invariant: without `install` nothing is replaced. Must not know: who asked for it.
"""

from __future__ import annotations

import sys
import time
from types import ModuleType, SimpleNamespace

JUMP_S_MAX = 10 * 365 * 86_400.0
DRIFT_MAX = 1000.0

_real_ns = time.time_ns


class ClockFaults:
    def __init__(self) -> None:
        self.jump_s = 0.0
        """Ahead of the real clock, in all."""
        self.drift = 0.0
        """Seconds gained (or lost) each second."""
        self._since_ns = _real_ns()
        self._offset_ns = 0

    def set(self, *, jump_s: float | None = None, drift: float | None = None) -> None:
        """From now on; what drifted before stays."""
        now = _real_ns()
        self._offset_ns = self._offset(now)
        self._since_ns = now
        if jump_s is not None:
            self._offset_ns += int(jump_s * 1e9)
            self.jump_s += jump_s
        if drift is not None:
            self.drift = drift

    def heal(self) -> None:
        """Back to the real time: one more jump."""
        self.jump_s = self.drift = 0.0
        self._offset_ns = 0

    def _offset(self, now_ns: int) -> int:
        return self._offset_ns + int((now_ns - self._since_ns) * self.drift)

    def time_ns(self) -> int:
        now = _real_ns()
        return now + self._offset(now)

    def time(self) -> float:
        return self.time_ns() / 1e9

    def install(self) -> None:
        real = SimpleNamespace(**vars(time))
        for name, module in tuple(sys.modules.items()):
            if name.partition(".")[0] == "grpc" and isinstance(getattr(module, "time", None), ModuleType):
                module.time = real  # type: ignore[attr-defined]
        time.time = self.time
        time.time_ns = self.time_ns
