"""What the shard's leader says to one push stream, until it is written.

Invariants: replies go out in order; while REPLIES_MAX wait, no more frames are read from the stream; weights that wait
are within their bounds, of this stream and of the node: beyond them a reply goes without (the first one that waits
never does), and the worker pulls what it lacks. Used on the event loop only. Must not know: gRPC, sums.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import replace

from paramserver.rpc.limits import Limits
from paramserver.rpc.room import Held
from paramserver.wire.errors import Refusal
from paramserver.wire.frames import BlockFrame, BlockStatus

REPLIES_MAX = 64
"""Replies of one stream that wait to be written; then its frames are not read any more."""


class Outbox:
    """A stream's sink (`paramserver.shard.streams.Sink`)."""

    def __init__(self, held: Held, limits: Limits) -> None:
        self.refusal: Refusal | None = None
        self.unanswered = 0
        """Frames offered and not replied to."""
        self.finished = False
        """The client has sent its last frame."""
        self.bare = 0
        """Replies that went without their weights."""
        self.changed = asyncio.Event()
        self.room = asyncio.Event()
        self.room.set()
        self._held = held
        self._bytes_max = limits.stream_replies_bytes_max
        self._bytes = 0
        self._replies: deque[tuple[BlockFrame, bool]] = deque()
        """Each with whether its weights are counted."""

    def reply(self, frame: BlockFrame) -> None:
        if frame.status is not BlockStatus.STREAM_OPEN:
            self.unanswered -= 1
        counted = len(frame.payload) > 0 and self._hold(frame)
        if len(frame.payload) and not counted and self._replies:
            frame = replace(frame, payload=b"", crc=0)
            self.bare += 1
        self._replies.append((frame, counted))
        if len(self._replies) >= REPLIES_MAX:
            self.room.clear()
        self.changed.set()

    def _hold(self, frame: BlockFrame) -> bool:
        size = len(frame.payload)
        if self._bytes + size > self._bytes_max or not self._held.take(frame.payload):
            return False
        self._bytes += size
        return True

    def end(self, refusal: Refusal) -> None:
        """Nothing more is taken. Replies that were made before still go out."""
        if self.refusal is None:
            self.refusal = refusal
        self.changed.set()

    def finish(self) -> None:
        self.finished = True
        self.changed.set()

    def next(self) -> BlockFrame | None:
        """The reply to write now; it is there until `written`."""
        return self._replies[0][0] if self._replies else None

    def written(self) -> None:
        """What `next` gave."""
        frame, counted = self._replies.popleft()
        if counted:
            self._bytes -= len(frame.payload)
            self._held.give(frame.payload)
        if len(self._replies) < REPLIES_MAX:
            self.room.set()

    def close(self) -> None:
        """Nobody writes any more."""
        while self._replies:
            self.written()
