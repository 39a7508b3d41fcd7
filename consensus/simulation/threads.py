"""The threads of a server as events on virtual time: lanes of heavy work, and the one that writes the log.

Owns work that is queued or running. Invariants: a lane does one thing at a time, in order; the outcome reaches the
host's thread after the work was done, never within `run` or `submit`; other events come between. Must not know: what
the work is.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Protocol, TypeVar

from consensus.core.interface import GroupId
from consensus.simulation.profile import Profile, between
from consensus.simulation.schedule import MS, Scheduler
from consensus.storage.interface import GroupAppend, LogStore

T = TypeVar("T")

IDLE_US = 100 * MS
"""After so long without an append the log is told (RULES W2)."""
FLUSH_BYTES_MAX = 8 << 20
"""The writer takes at most this much at once, or one append that is larger."""


class Process(Protocol):
    """The process the threads belong to: its events die with it, and wait while it is paused."""

    def later(self, delay_us: int, what: str, action: Callable[[], None]) -> None:
        """On the host's thread."""

    def on_thread(self, delay_us: int, action: Callable[[], None]) -> None:
        """On a thread of its own: goes on while the host's hangs."""


class SimulatedLanes:
    """`consensus.runtime.interface.Lanes` of one life of a process."""

    def __init__(self, scheduler: Scheduler, source: random.Random, profile: Callable[[], Profile], process: Process):
        self._scheduler = scheduler
        self._random = source
        self._profile = profile
        self._process = process
        self._free_at_us: dict[str, int] = {}
        self._posted_at_us = 0

    def run(self, lane: str, work: Callable[[], T], done: Callable[[T], None]) -> None:
        profile = self._profile()
        end = max(self._scheduler.now_us, self._free_at_us.get(lane, 0)) + between(self._random, profile.work_us)
        self._free_at_us[lane] = end

        def work_now() -> None:
            result = work()
            # A loop's queue is first in, first out, whichever thread posts.
            at = self._scheduler.now_us + between(self._random, self._profile().post_us)
            self._posted_at_us = max(at, self._posted_at_us)
            self._process.later(self._posted_at_us - self._scheduler.now_us, "", lambda: done(result))

        self._process.on_thread(end - self._scheduler.now_us, work_now)


class SimulatedLogWriter:
    """`consensus.runtime.interface.LogWriter` of one life of a process, over a real `Wal`."""

    def __init__(
        self,
        log: LogStore,
        scheduler: Scheduler,
        source: random.Random,
        profile: Callable[[], Profile],
        process: Process,
        lag_us: Callable[[], int],
        synced: Callable[[GroupAppend], None],
    ) -> None:
        self._log = log
        self._scheduler = scheduler
        self._random = source
        self._profile = profile
        self._process = process
        self._lag_us = lag_us
        self._synced = synced
        self._queue: list[tuple[GroupAppend, Callable[[], None]]] = []
        self._releases: list[tuple[GroupId, int]] = []
        self._busy = False
        self._last_work = 0

    def submit(self, append: GroupAppend, done: Callable[[], None]) -> None:
        self._queue.append((append, done))
        self._wake()

    def release(self, group: GroupId, below_index: int) -> None:
        self._releases.append((group, below_index))
        self._wake()

    def full(self) -> bool:
        return False

    def _wake(self) -> None:
        if not self._busy:
            self._busy = True
            self._last_work += 1
            self._process.on_thread(between(self._random, self._profile().post_us), self._write)

    def _take(self) -> list[tuple[GroupAppend, Callable[[], None]]]:
        count, size = 0, 0
        for append, _ in self._queue:
            size += sum(len(entry.payload) for entry in append.entries)
            if count and size > FLUSH_BYTES_MAX:
                break
            count += 1
        taken, self._queue = self._queue[:count], self._queue[count:]
        return taken

    def _write(self) -> None:
        batch = self._take()
        releases, self._releases = self._releases, []
        if batch:
            self._log.write([append for append, _ in batch])
        profile = self._profile()
        delay = between(self._random, profile.write_us) + between(self._random, profile.sync_us) + self._lag_us()
        if self._random.randrange(1000) < profile.slow_sync_permille:
            delay += between(self._random, profile.slow_sync_us)
        self._process.on_thread(delay, lambda: self._sync(batch, releases))

    def _sync(self, batch: list[tuple[GroupAppend, Callable[[], None]]], releases: list[tuple[GroupId, int]]) -> None:
        if batch:
            self._log.sync()
            for append, _ in batch:
                self._synced(append)

            def report() -> None:
                for _, done in batch:
                    done()

            # At least 1 us and at most the post delay; the next flush takes longer, so reports stay in order.
            self._process.later(1 + min(between(self._random, self._profile().post_us), 10), "", report)
        for group, below_index in releases:
            self._log.release(group, below_index)
        self._busy = False
        if self._queue or self._releases:
            self._wake()
            return
        if self._random.randrange(2):
            self._log.prepare()
        work = self._last_work

        def idle() -> None:
            if not self._busy and self._last_work == work:
                self._log.idle()

        self._process.on_thread(IDLE_US, idle)
