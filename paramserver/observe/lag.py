"""How late the event loop is (RULES C3): the one figure that says whether control is served in time.

A task sleeps for a known time and measures how much longer it took. Invariant: memory is bounded by the window. Must
not know: what the loop is busy with.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Mapping

log = logging.getLogger(__name__)

INTERVAL_MS = 20
WINDOW = 3000
"""Samples kept: one minute."""
ALARM_MS = 150.0
"""A lag above this is logged: half an election timeout."""


class LoopLag:
    """Gauges `loop_lag_ms_max` (since the start), `loop_lag_ms_max_1m` and `loop_lag_ms_mean_1m`."""

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=WINDOW)
        self._max_ms = 0.0

    async def run(self) -> None:
        while True:
            begin = time.monotonic()
            await asyncio.sleep(INTERVAL_MS / 1000)
            self.sample((time.monotonic() - begin) * 1000 - INTERVAL_MS)

    def sample(self, lag_ms: float) -> None:
        lag_ms = max(0.0, lag_ms)
        self._samples.append(lag_ms)
        self._max_ms = max(self._max_ms, lag_ms)
        if lag_ms > ALARM_MS:
            log.warning("the event loop was %.0f ms late", lag_ms)

    def gauges(self) -> Mapping[str, float]:
        samples = self._samples
        return {
            "loop_lag_ms_max": round(self._max_ms, 3),
            "loop_lag_ms_max_1m": round(max(samples, default=0.0), 3),
            "loop_lag_ms_mean_1m": round(sum(samples) / len(samples), 3) if samples else 0.0,
        }
