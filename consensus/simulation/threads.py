"""The threads of a server as events on virtual time: lanes of heavy work, and the one that writes the log.

Owns work that is queued or running. Invariants: a lane does one thing at a time, in order; the outcome reaches the
host's thread after the work was done, never within `run` or `submit`; other events come between. Must not know: what
the work is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar

from consensus.core.interface import Entry, GroupId
from consensus.runtime.behind import Behind
from consensus.runtime.flushing import FlushQueue, Waiting
from consensus.simulation.profile import Profile, between
from consensus.simulation.schedule import MS, Scheduler
from consensus.storage.errors import StorageFull
from consensus.storage.interface import GroupAppend, LogStore

T = TypeVar("T")

IDLE_US = 100 * MS
"""After so long without an append the log is told (RULES W2)."""
FULL_RETRY_US = 250 * MS
"""On a full disk the log is tried again after so long."""
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
        read_back: Callable[[int], None],
        behind: Behind | None = None,
    ) -> None:
        """`synced`: told of each append that is durable, or, where the sync may follow behind, written. `read_back`:
        told how many entries were."""
        self._log = log
        self._behind = behind
        self._sync_planned = False
        self._scheduler = scheduler
        self._random = source
        self._profile = profile
        self._process = process
        self._lag_us = lag_us
        self._synced = synced
        self._read_back = read_back
        self._queue = FlushQueue(FLUSH_BYTES_MAX)
        self._turned_away = False
        """The disk was full for something that waits in the queue."""
        self._arrived = False
        """Something was submitted since the queue was last looked at."""
        self._looking = False
        self._releases: list[tuple[GroupId, int]] = []
        self._busy = False
        self._last_work = 0
        self.together: Callable[[], AbstractContextManager[Any]] = nullcontext
        """Wherein all that one flush made durable is told, as `consensus.runtime.mailbox` does."""

    def submit(self, append: GroupAppend, done: Callable[[], None]) -> None:
        self._queue.put(append, done)
        self._arrived = True
        self._wake()

    def release(self, group: GroupId, below_index: int) -> None:
        self._releases.append((group, below_index))
        self._wake()

    def load(self, group: GroupId, entries: Sequence[Entry]) -> tuple[Entry, ...] | None:
        """On the lane it is called on, which takes its time."""
        loaded = self._log.load(group, entries)
        self._read_back(sum(entry.stored_bytes > 0 for entry in entries) if loaded is not None else 0)
        return loaded

    def full(self) -> bool:
        return self._turned_away or self._log.full

    def exhausted(self) -> bool:
        return self._turned_away or self._log.exhausted

    def _wake(self) -> None:
        if not self._busy:
            self._busy = True
            self._last_work += 1
            self._process.on_thread(between(self._random, self._profile().post_us), self._write)

    def _fill(self) -> list[Waiting]:
        """Write the next flush; on a full disk as much of it as the reserve may hold."""
        for batch in (self._queue.take, self._queue.take_for_reserve):
            taken = batch()
            try:
                if taken:
                    self._log.write([append for append, _ in taken])
                self._turned_away = self._turned_away and batch != self._queue.take
                return taken
            except StorageFull:
                self._queue.put_back(taken)
                self._turned_away = True
        return []

    def _write(self) -> None:
        self._arrived = False
        batch = self._fill()
        releases, self._releases = self._releases, []
        behind = self._behind
        if behind is not None and batch and behind.may_follow([append for append, _ in batch]) and not behind.due:
            self._process.on_thread(
                between(self._random, self._profile().write_us), lambda: self._written(batch, releases)
            )
            return
        self._process.on_thread(self._flush_us(), lambda: self._sync(batch, releases))

    def _flush_us(self) -> int:
        profile = self._profile()
        delay = between(self._random, profile.write_us) + between(self._random, profile.sync_us) + self._lag_us()
        if self._random.randrange(1000) < profile.slow_sync_permille:
            delay += between(self._random, profile.slow_sync_us)
        return delay

    def _written(self, batch: list[Waiting], releases: list[tuple[GroupId, int]]) -> None:
        """Reported now, synced within the bound (RULES W8)."""
        self._report(batch)
        if self._behind is not None and not self._sync_planned:
            self._sync_planned = True
            self._process.on_thread(self._behind.ms_max * MS, self._catch_up)
        self._go_on(releases)

    def _catch_up(self) -> None:
        self._sync_planned = False
        if not self._busy:  # Whoever is at it plans or does the next one.
            self._busy = True
            self._process.on_thread(self._flush_us(), lambda: self._sync([], []))
        elif self._behind is not None and self._behind.bytes:
            self._sync_planned = True
            self._process.on_thread(MS, self._catch_up)

    def _sync(self, batch: list[Waiting], releases: list[tuple[GroupId, int]]) -> None:
        if batch or self._behind is not None:
            self._log.sync()
        if self._behind is not None:
            self._behind.synced()
        if batch:
            self._report(batch)
        self._go_on(releases)

    def _report(self, batch: list[Waiting]) -> None:
        for append, _ in batch:
            self._synced(append)

        def report() -> None:
            with self.together():
                for _, done in batch:
                    done()

        # At least 1 us and at most the post delay; the next flush takes longer, so reports stay in order.
        self._process.later(1 + min(between(self._random, self._profile().post_us), 10), "", report)

    def _go_on(self, releases: list[tuple[GroupId, int]]) -> None:
        for group, below_index in releases:
            self._log.release(group, below_index)
        self._busy = False
        self._look_later()
        if self._arrived or self._releases or (len(self._queue) and not self._turned_away):
            self._wake()
            return
        if self._random.randrange(2):
            self._log.prepare()
            self._look_later()
        work = self._last_work

        def idle() -> None:
            if not self._busy and self._last_work == work:
                self._log.idle()
                if self._log.unprepared:
                    self._log.prepare()
                self._look_later()

        self._process.on_thread(IDLE_US, idle)

    def _look_later(self) -> None:
        if self.full() and not self._looking:
            self._looking = True
            self._process.on_thread(FULL_RETRY_US, self._look_for_space)

    def _look_for_space(self) -> None:
        self._looking = False
        if not self._busy:
            self._log.prepare()
            self._wake()
