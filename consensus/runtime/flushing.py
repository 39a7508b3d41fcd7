"""Appends that wait for the log: what goes into the next flush, and what goes on when the disk is full.

Owns their order. Invariants: those of one group leave in the order in which they came (HAZARDS 7); a flush takes at
most `flush_bytes_max` payload bytes, or one append that is larger; hard state never waits behind the payload of other
groups (RULES W5); what a full disk turned away stays at its place, and only what the reserve may hold passes by, never
within its own group. Must not know: threads, disks.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import TypeAlias

from consensus.core.interface import EntryKind, GroupId
from consensus.core.raft.log import size_of
from consensus.storage.interface import GroupAppend

Waiting: TypeAlias = tuple[GroupAppend, Callable[[], None]]
"""An append, and whom to tell when it is durable."""


def fits_reserve(append: GroupAppend) -> bool:
    """Whether it is written even when the disk is full: hard state, no-ops, configurations, all but commands."""
    return all(entry.kind is not EntryKind.NORMAL for entry in append.entries)


class FlushQueue:
    """Not for several threads at once."""

    __slots__ = ("_ahead", "_flush_bytes_max", "_queue", "_queued")

    def __init__(self, flush_bytes_max: int) -> None:
        self._flush_bytes_max = flush_bytes_max
        self._queue: deque[Waiting] = deque()
        self._ahead: deque[Waiting] = deque()
        """Goes into the next flush, before `_queue`: of groups that had nothing there when it came."""
        self._queued: Counter[GroupId] = Counter()
        """Appends of each group in `_queue`."""

    def __len__(self) -> int:
        return len(self._queue) + len(self._ahead)

    def put(self, append: GroupAppend, done: Callable[[], None]) -> None:
        if append.hard_state is not None and fits_reserve(append) and not self._queued[append.group]:
            self._ahead.append((append, done))
        else:
            self._queue.append((append, done))
            self._queued[append.group] += 1

    def take(self) -> list[Waiting]:
        """The next flush."""
        batch = list(self._ahead)
        self._ahead.clear()
        size = 0
        while self._queue:
            size += sum(map(size_of, self._queue[0][0].entries))
            if batch and size > self._flush_bytes_max:
                break
            batch.append(self._queue.popleft())
            self._queued[batch[-1][0].group] -= 1
        return batch

    def take_for_reserve(self) -> list[Waiting]:
        """The next flush on a full disk."""
        batch, kept, behind = list(self._ahead), deque[Waiting](), set[GroupId]()
        self._ahead.clear()
        for waiting in self._queue:
            append = waiting[0]
            if append.group in behind or not fits_reserve(append):
                behind.add(append.group)
                kept.append(waiting)
            else:
                self._queued[append.group] -= 1
                batch.append(waiting)
        self._queue = kept
        return batch

    def put_back(self, batch: Sequence[Waiting]) -> None:
        """It could not be written: it is next again."""
        for waiting in reversed(batch):
            self._queue.appendleft(waiting)
            self._queued[waiting[0].group] += 1
