"""Virtual time: events in order, and clocks that read it.

Owns the only queue of the simulation. Invariants: time never goes back; events of one moment run in the order in which
they were scheduled; nothing here reads a real clock. Must not know: what events do.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

from consensus.simulation.errors import Misused

MS = 1000
"""Microseconds in a millisecond. All times of the simulation are whole microseconds."""


def stream(seed: int, name: str) -> random.Random:
    """A source of randomness of its own for each use: a draw more in one place changes nothing elsewhere. The same on
    every machine and under every hash seed."""
    return random.Random(f"{seed}/{name}")


class Scheduler:
    def __init__(self) -> None:
        self.now_us = 0
        self.events = 0
        """Events run so far."""
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._next = 0

    def after(self, delay_us: int, action: Callable[[], None]) -> None:
        if delay_us < 0:
            raise Misused(f"an event can't be scheduled {-delay_us} us ago")
        self._next += 1
        heapq.heappush(self._queue, (self.now_us + delay_us, self._next, action))

    def at(self, time_us: int, action: Callable[[], None]) -> None:
        self.after(max(0, time_us - self.now_us), action)

    def step(self, until_us: int) -> bool:
        """Run the next event, if it is due by then; otherwise let time pass until then. False: nothing was due."""
        if not self._queue or self._queue[0][0] > until_us:
            self.now_us = max(self.now_us, until_us)
            return False
        self.now_us, _, action = heapq.heappop(self._queue)
        self.events += 1
        action()
        return True


class DriftingClock:
    """`consensus.runtime.interface.Clock` of one node: monotonic, with an origin and a speed of its own."""

    def __init__(self, scheduler: Scheduler, *, origin_ms: int = 0, drift_ppm: int = 0) -> None:
        self._scheduler = scheduler
        self._local_us = origin_ms * MS
        self._since_us = scheduler.now_us
        self._ppm = self._own_ppm = drift_ppm

    def drift(self, more_ppm: int = 0) -> None:
        """From now on run so much faster than by its own speed."""
        self._local_us = self._now_us()
        self._since_us = self._scheduler.now_us
        self._ppm = self._own_ppm + more_ppm

    def jump(self, ms: int) -> None:
        """Be so much later from now on."""
        if ms < 0:
            raise Misused(f"a monotonic clock can't go back by {-ms} ms")
        self._local_us += ms * MS

    def _now_us(self) -> int:
        return self._local_us + (self._scheduler.now_us - self._since_us) * (1_000_000 + self._ppm) // 1_000_000

    def now_ms(self) -> int:
        return self._now_us() // MS
