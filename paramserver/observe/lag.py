"""How late the event loop is (RULES C3): the one figure that says whether control is served in time.

A task sleeps for a known time and measures how much longer it took. Invariant: memory is bounded by the window. Must
not know: what the loop is busy with.
"""

from __future__ import annotations

import asyncio
import logging
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping
from itertools import accumulate

log = logging.getLogger(__name__)

INTERVAL_MS = 20
WINDOW = 3000
"""Samples kept: one minute."""
STEPS_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
"""Bounds of the histogram."""
ALARM_MS = 150.0
"""A lag above this is logged: half an election timeout."""


class LoopLag:
    """Gauges: `loop_lag_ms_max` since the start, and of the last minute `loop_lag_ms_max_1m`, `loop_lag_ms_p50_1m`,
    `loop_lag_ms_p99_1m` and `loop_lag_ms_mean_1m`. Counts: a histogram since the start, `loop_lag_le_5_ms` for the
    samples of at most 5 ms and so on, `loop_lag_samples` for all."""

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=WINDOW)
        self._max_ms = 0.0
        self._counts = [0] * (len(STEPS_MS) + 1)

    async def run(self) -> None:
        while True:
            begin = time.monotonic()
            await asyncio.sleep(INTERVAL_MS / 1000)
            self.sample((time.monotonic() - begin) * 1000 - INTERVAL_MS)

    def sample(self, lag_ms: float) -> None:
        lag_ms = max(0.0, lag_ms)
        self._samples.append(lag_ms)
        self._counts[bisect_left(STEPS_MS, lag_ms)] += 1
        self._max_ms = max(self._max_ms, lag_ms)
        if lag_ms > ALARM_MS:
            log.warning("the event loop was %.0f ms late", lag_ms)

    def gauges(self) -> Mapping[str, float]:
        samples = sorted(self._samples) or [0.0]
        return {
            "loop_lag_ms_max": round(self._max_ms, 3),
            "loop_lag_ms_max_1m": round(samples[-1], 3),
            "loop_lag_ms_p50_1m": round(samples[len(samples) // 2], 3),
            "loop_lag_ms_p99_1m": round(samples[min(len(samples) - 1, len(samples) * 99 // 100)], 3),
            "loop_lag_ms_mean_1m": round(sum(samples) / len(samples), 3),
        }

    def counts(self) -> Mapping[str, int]:
        below = list(accumulate(self._counts))
        return {**{f"le_{step}_ms": count for step, count in zip(STEPS_MS, below, strict=False)}, "samples": below[-1]}
