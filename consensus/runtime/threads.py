"""The runtime on real threads and an event loop.

Owns the log's writer thread, the lanes' threads, and the ticker. Invariants: results come back to the loop's thread by
`post`, in order; appends of a group become durable in the order of submission, everything that is queued in one write
and one sync, which under durability `replicated` follows behind the report of entries (RULES W8); on a full disk what
the reserve may hold goes on and the rest waits (RULES W5); after a failed write or sync nothing is reported any more
and the process ends (HAZARDS 22). Must not know: Raft, what work does.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from consensus.core.interface import Entry, GroupId
from consensus.runtime.behind import Behind
from consensus.runtime.flushing import FlushQueue, Waiting
from consensus.runtime.mailbox import Post
from consensus.runtime.node import NodeRuntime
from consensus.storage.errors import EXIT_STORAGE_FAILED, StorageError, StorageFull
from consensus.storage.interface import GroupAppend, LogStore

T = TypeVar("T")

EXIT_INVARIANT_BROKEN = 70
"""Process exit code after a broken invariant or another bug (EX_SOFTWARE)."""


def end_process(error: BaseException) -> NoReturn:
    """The default of every `fatal`: one line, and out, with nothing run on the way that could touch the disk."""
    if isinstance(error, StorageError):
        line, code = f"storage failed, so this server ends: {error}", EXIT_STORAGE_FAILED
    else:
        line, code = (
            f"an invariant is broken, so this server ends: {type(error).__name__}: {error}",
            (EXIT_INVARIANT_BROKEN),
        )
    sys.stderr.write(f"fatal: {line} (exit code {code})\n")
    if code == EXIT_INVARIANT_BROKEN:
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    sys.stderr.flush()
    os._exit(code)


class MonotonicClock:
    """`Clock` of the process."""

    def now_ms(self) -> int:
        return time.monotonic_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class _Release:
    group: GroupId
    below_index: int


class ThreadLogWriter:
    """`LogWriter`: one thread drives the log, with group commit; a second one keeps a spare segment ready, and tries
    again and again while there is no space for one."""

    def __init__(
        self,
        wal: LogStore,
        post: Post,
        *,
        fatal: Callable[[BaseException], None] = end_process,
        flush_bytes_max: int = 8 << 20,
        idle_ms: int = 100,
        full_retry_ms: int = 250,
        queue_appends_max: int = 1 << 20,
        behind: Behind | None = None,
        failed: Callable[[], None] | None = None,
    ) -> None:
        """A flush takes what is queued up to `flush_bytes_max` payload bytes, or one append that is larger. After
        `idle_ms` without an append the log is told so once. On a full disk space is looked for every `full_retry_ms`.
        More than `queue_appends_max` waiting appends are a bug of those who bound what they submit (payload:
        `RaftConfig.uncommitted_bytes_max`), and fatal. `behind`: entries are reported before they are synced, within
        its bounds. `failed` is called when the log has failed, before `fatal`."""
        self._wal = wal
        self._post = post
        self._fatal = fatal
        self._idle_s = idle_ms / 1000
        self._full_retry_s = full_retry_ms / 1000
        self._queue_appends_max = queue_appends_max
        self._inbox: queue.SimpleQueue[Waiting | _Release | None] = queue.SimpleQueue()
        """What the thread has not looked at yet; None wakes it."""
        self._queue = FlushQueue(flush_bytes_max)
        """The thread's own, like all below but `_turned_away`, which others only read."""
        self._turned_away = False
        """The disk was full for something that waits in the queue; it is tried again at `_retry_s`."""
        self._retry_s = 0.0
        self._arrived = False
        """Something came into the queue since it was last tried."""
        self._releases: list[_Release] = []
        self._closing = False
        self._failed = False
        self._behind = behind
        self._note_failure = failed
        self._sync_at_s: float | None = None
        """When what was reported unsynced is synced; None when there is nothing."""
        self._prepare = threading.Event()
        self.syncs = 0
        """Flushes made in this life."""
        self._thread = threading.Thread(target=self._run, name="wal", daemon=True)
        self._spares = threading.Thread(target=self._keep_spares, name="wal-spares", daemon=True)
        self._thread.start()
        self._spares.start()

    def submit(self, append: GroupAppend, done: Callable[[], None]) -> None:
        waiting = len(self._queue) + self._inbox.qsize()
        if waiting >= self._queue_appends_max:
            raise RuntimeError(f"{waiting} appends wait for the log")
        self._inbox.put((append, done))

    def full(self) -> bool:
        return self._turned_away or self._wal.full

    def exhausted(self) -> bool:
        return self._turned_away or self._wal.exhausted

    def release(self, group: GroupId, below_index: int) -> None:
        self._inbox.put(_Release(group, below_index))

    def load(self, group: GroupId, entries: Sequence[Entry]) -> tuple[Entry, ...] | None:
        return self._wal.load(group, entries)

    def close(self, timeout_s: float = 10.0) -> bool:
        """Flush what is queued, cover it (RULES W2), close the log. Callbacks of the last flush are still posted.
        False when it took longer than `timeout_s`, or failed."""
        self._closing = True
        self._inbox.put(None)
        self._prepare.set()
        self._thread.join(timeout_s)
        self._spares.join(timeout_s)
        return not (self._thread.is_alive() or self._spares.is_alive() or self._failed)

    # --- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._turn():
                pass
            self._prepare.set()
            self._spares.join()
            self._wal.close()
        except BaseException as error:
            self._failed = True
            if self._note_failure is not None:
                self._note_failure()
            self._fatal(error)

    def _turn(self) -> bool:
        """One flush, or the idle batch; False at the end."""
        if not self._wait():
            return False
        everything = not self._turned_away or time.monotonic() >= self._retry_s
        batch = self._queue.take() if everything else self._queue.take_for_reserve()
        self._arrived = False
        releases, self._releases = self._releases, []
        if batch:
            written = self._write(batch, everything=everything)
            if written:
                self._persist(written)
        if self._overdue():
            self._sync()
        for release in releases:
            self._wal.release(release.group, release.below_index)
        if self._wal.unprepared:
            self._prepare.set()
        return True

    def _persist(self, written: list[Waiting]) -> None:
        """Report what was written once it is durable, or at once where the sync may follow behind."""
        behind = self._behind
        if behind is None or not behind.may_follow([append for append, _ in written]):
            self._sync()
        elif self._sync_at_s is None:
            self._sync_at_s = time.monotonic() + behind.ms_max / 1000
        self._report([done for _, done in written])

    def _sync(self) -> None:
        self._wal.sync()
        self.syncs += 1
        self._sync_at_s = None
        if self._behind is not None:
            self._behind.synced()

    def _overdue(self) -> bool:
        """What was reported unsynced must not stay so any longer."""
        if self._sync_at_s is None or self._behind is None:
            return False
        return self._behind.due or time.monotonic() >= self._sync_at_s

    def _wait(self) -> bool:
        """Until there is something to do; False at the end."""
        quiet = False
        while True:
            self._take_in()
            if self._due():
                return True
            if self._closing:
                return False
            if self._sync_at_s is not None:
                self._take_in(max(0.0, self._sync_at_s - time.monotonic()), wait=True)
                continue
            timeout_s = self._full_retry_s if self._turned_away else None if quiet else self._idle_s
            if not self._take_in(timeout_s, wait=True) and not quiet:
                quiet = True
                self._wal.idle()
                if self._wal.unprepared or self._wal.full:  # Somebody must look for space, though nothing comes.
                    self._prepare.set()

    def _take_in(self, timeout_s: float | None = None, *, wait: bool = False) -> bool:
        """Look at what came, or wait for the next that comes; whether there was something."""
        came = False
        try:
            while True:
                one = self._inbox.get(wait, timeout_s)
                wait, came = False, True
                if isinstance(one, _Release):
                    self._releases.append(one)
                elif one is not None:
                    self._queue.put(*one)
                    self._arrived = True
        except queue.Empty:
            return came

    def _due(self) -> bool:
        """Of what was turned away nothing is tried before its time; what came since may fit into the reserve."""
        if self._overdue():
            return True
        if self._turned_away and not self._releases and not self._arrived:
            return time.monotonic() >= self._retry_s
        return bool(len(self._queue) or self._releases)

    def _write(self, batch: list[Waiting], *, everything: bool) -> list[Waiting]:
        """Returns what was written: on a full disk as much of it as the reserve may hold."""
        try:
            self._wal.write([append for append, _ in batch])
            self._turned_away = self._turned_away and not everything
            return batch
        except StorageFull:
            self._queue.put_back(batch)
            self._turned_away = True
            if everything:
                self._retry_s = time.monotonic() + self._full_retry_s
            batch = self._queue.take_for_reserve() if everything else []
            return self._write(batch, everything=False) if batch else []

    def _report(self, dones: list[Callable[[], None]]) -> None:
        def run() -> None:
            for done in dones:
                done()

        try:
            self._post(run)
        except RuntimeError:
            if not self._closing:  # The loop is gone.
                raise

    def _keep_spares(self) -> None:
        while True:
            self._prepare.wait(self._full_retry_s if self._wal.full else None)
            self._prepare.clear()
            if self._closing or self._failed:
                return
            try:
                self._wal.prepare()
            except BaseException as error:
                self._fatal(error)
                return


class ThreadLanes:
    """`Lanes`: one thread a lane, made when it is first used."""

    def __init__(
        self,
        post: Post,
        *,
        fatal: Callable[[BaseException], None] = end_process,
        at_start: Callable[[str], None] | None = None,
        jobs_max: int = 100_000,
    ) -> None:
        """`at_start` runs first on each lane's thread and gets its name (known-answer tests, RULES S13). Work that
        raises is fatal. More than `jobs_max` waiting jobs are a bug of those who bound what they hand in, and raise."""
        self._post = post
        self._fatal = fatal
        self._at_start = at_start
        self._jobs_max = jobs_max
        self._queues: dict[str, queue.SimpleQueue[tuple[Callable[[], Any], Callable[[Any], None]] | None]] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._closing = False

    def run(self, lane: str, work: Callable[[], T], done: Callable[[T], None]) -> None:
        jobs = self._queues.get(lane)
        if jobs is None:
            if self._closing:
                return
            jobs = self._queues[lane] = queue.SimpleQueue()
            thread = self._threads[lane] = threading.Thread(
                target=self._serve, args=(lane, jobs), name=f"lane-{lane}", daemon=True
            )
            thread.start()
        if jobs.qsize() >= self._jobs_max:
            raise RuntimeError(f"{self._jobs_max} jobs wait for lane {lane}")
        jobs.put((work, done))

    def close(self, timeout_s: float = 10.0) -> bool:
        """Finish what was handed in; False when it took longer than `timeout_s`."""
        self._closing = True
        for jobs in self._queues.values():
            jobs.put(None)
        for thread in self._threads.values():
            thread.join(timeout_s)
        return not any(thread.is_alive() for thread in self._threads.values())

    def _serve(
        self, lane: str, jobs: queue.SimpleQueue[tuple[Callable[[], Any], Callable[[Any], None]] | None]
    ) -> None:
        try:
            if self._at_start is not None:
                self._at_start(lane)
            while (job := jobs.get()) is not None:
                work, done = job
                self._report(done, work())
                del job, work, done  # Payloads must not live until the next job comes.
        except BaseException as error:
            self._fatal(error)

    def _report(self, done: Callable[[Any], None], result: Any) -> None:
        try:
            self._post(lambda: done(result))
        except RuntimeError:
            if not self._closing:
                raise


class Ticker:
    """Calls `NodeRuntime.tick` on an event loop."""

    def __init__(self, runtime: NodeRuntime, *, tick_ms: int = 10) -> None:
        self._runtime = runtime
        self._tick_s = tick_ms / 1000
        self._handle: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.lag_ms_max = 0
        """The longest delay of a tick so far: how long the loop that serves control was busy (C3)."""
        self._due_s = 0.0

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._arm(self._loop)

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due_s = loop.time() + self._tick_s
        self._handle = loop.call_at(self._due_s, self._tick)

    def _tick(self) -> None:
        if self._loop is None:
            return
        self.lag_ms_max = max(self.lag_ms_max, int((self._loop.time() - self._due_s) * 1000))
        self._arm(self._loop)
        self._runtime.tick()

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._loop = None
