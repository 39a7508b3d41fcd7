"""Whether the node's disk makes progress (HAZARDS 16).

Owns the count of what was handed to the log writer and is not durable yet, and how long nothing of it became so.
Invariants: time counts only while something waits, but not for space on a full disk, and only as the node's ticks give
it, so a process that slept blames no disk. Must not know: files, threads, groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from consensus.core.interface import Entry, GroupId
from consensus.runtime.interface import LogWriter
from consensus.storage.interface import GroupAppend


class WatchedWriter:
    """A `LogWriter` around the real one."""

    __slots__ = ("_quiet_ms", "_waiting", "_writer", "stalled")

    def __init__(self, writer: LogWriter) -> None:
        self._writer = writer
        self._waiting = 0
        self._quiet_ms = 0
        self.stalled = False

    def submit(self, append: GroupAppend, done: Callable[[], None]) -> None:
        self._waiting += 1

        def durable() -> None:
            self._waiting -= 1
            self._quiet_ms = 0
            done()

        self._writer.submit(append, durable)

    def release(self, group: GroupId, below_index: int) -> None:
        self._writer.release(group, below_index)

    def load(self, group: GroupId, entries: Sequence[Entry]) -> tuple[Entry, ...] | None:
        return self._writer.load(group, entries)

    def full(self) -> bool:
        return self._writer.full()

    def exhausted(self) -> bool:
        return self._writer.exhausted()

    @property
    def busy(self) -> bool:
        """Something is not durable yet."""
        return self._waiting > 0

    def tick(self, elapsed_ms: int, *, stall_ms: int) -> bool:
        """Time passed; True when `stalled` changed."""
        waits = self._waiting and not self._writer.full()
        self._quiet_ms = self._quiet_ms + elapsed_ms if waits else 0
        before, self.stalled = self.stalled, self._quiet_ms > stall_ms
        return self.stalled != before
