"""The proxy's loop: descriptors that are ready, and times that have come.

Invariant: a callback of a descriptor that was forgotten in the same round is not called. Must not know: links.
"""

from __future__ import annotations

import heapq
import itertools
import select
import time
from collections.abc import Callable
from typing import TypeAlias

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
_ENDED = select.EPOLLHUP | select.EPOLLERR
Ready: TypeAlias = Callable[[bool, bool], None]
"""(readable, writable)"""


class Reactor:
    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, tuple[int, Ready]] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.stopped = False

    def now(self) -> float:
        return time.monotonic()

    def watch(self, descriptor: int, events: int, ready: Ready) -> None:
        """Level-triggered; without events the descriptor is forgotten, for its end alone would be told for ever."""
        known = self._watched.get(descriptor)
        if not events:
            self.forget(descriptor)
        elif known is None:
            self._epoll.register(descriptor, events)
            self._watched[descriptor] = (events, ready)
        elif known[0] != events:
            self._epoll.modify(descriptor, events)
            self._watched[descriptor] = (events, ready)

    def forget(self, descriptor: int) -> None:
        if self._watched.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def at(self, due_s: float, call: Callable[[], None]) -> None:
        """Once; there is no taking it back: the callee knows whether it still matters."""
        heapq.heappush(self._timers, (due_s, next(self._order), call))

    def run(self) -> None:
        while not self.stopped:
            self.turn(None)

    def turn(self, wait_s: float | None) -> None:
        if self._timers:
            left_s = max(0.0, self._timers[0][0] - self.now())
            wait_s = left_s if wait_s is None else min(wait_s, left_s)
        for descriptor, events in self._epoll.poll(wait_s):
            known = self._watched.get(descriptor)
            if known is None:
                continue
            wanted, ready = known
            ended = bool(events & _ENDED)
            ready(
                bool(wanted & READ) and (ended or bool(events & READ)),
                bool(wanted & WRITE) and (ended or bool(events & WRITE)),
            )
        now = self.now()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()

    def close(self) -> None:
        self._epoll.close()
