"""What a node offers each of its groups.

Owns the bundle of seams (disk, lanes, network, clock) and node-wide slots. Invariant: everything here is used on the
host's thread only. Must not know: Raft, what payloads mean.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TypeVar

from consensus.core.interface import NodeId
from consensus.runtime.interface import Clock, Lanes, LogWriter
from consensus.runtime.options import RuntimeOptions
from consensus.storage.interface import SnapshotStore
from consensus.transport.interface import Channel, Envelope

T = TypeVar("T")
FILES_LANE = "files"
"""Where snapshot files are read, received and made durable: beside the state machines, not in their way."""
LOADS_LANE = "loads"
"""Where entries are read back from the log for members that are behind."""


class Slots:
    """At most `count` holders at a time; others wait in order. Waiting is bounded by who asks: one a transfer."""

    __slots__ = ("_free", "_waiting")

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: deque[Callable[[], bool]] = deque()

    def acquire(self, begin: Callable[[], bool]) -> None:
        """Call `begin` when there is a slot; it says whether it still wants it. Who holds one calls `release`."""
        self._waiting.append(begin)
        self._serve()

    def release(self) -> None:
        self._free += 1
        self._serve()

    def _serve(self) -> None:
        while self._free and self._waiting:
            self._free -= 1
            if not self._waiting.popleft()():
                self._free += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """`send` only queues; all that one input caused leaves together when the input is done."""

    node: NodeId
    incarnation: int
    options: RuntimeOptions
    clock: Clock
    writer: LogWriter
    store: SnapshotStore
    lanes: Lanes
    send: Callable[[NodeId, Channel, Envelope], None]
    input: Callable[[], AbstractContextManager[bool]]
    """Everything that comes from outside happens inside one; it gives False when the node was stopped."""
    dropped: Counter[str]
    """What was dropped, by reason."""
    writing: Slots
    """One snapshot is written at a time (RULES W6)."""
    sending: Slots
    log_busy: Callable[[], bool] = lambda: False
    """Something waits to be flushed: snapshots let it go first."""
    avoided: set[NodeId] = field(default_factory=set)
    """Nodes that are to lead nothing where another voter can; changed in place by the node."""

    def run(self, lane: str, work: Callable[[], T], done: Callable[[T], None]) -> None:
        """Run `work` on a lane, and `done` as an input of its own, unless the node was stopped meanwhile."""

        def finished(result: T) -> None:
            with self.input() as running:
                if running:
                    done(result)

        self.lanes.run(lane, work, finished)
