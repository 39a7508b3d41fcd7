"""What waits to be sent to one peer on one channel.

Owns a bounded queue. Invariants: order is kept; at the bound the newest is lost, as if the network had lost it. Must
not know: streams.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

from consensus.transport.codec import carried_bytes
from consensus.transport.interface import Envelope

ENVELOPE_BYTES = 128
"""What an envelope counts beside note and payload."""


class SendQueue:
    """Used on the event loop's thread only."""

    def __init__(self, *, envelopes_max: int, bytes_max: int) -> None:
        self._envelopes_max = envelopes_max
        self._bytes_max = bytes_max
        self._waiting: deque[tuple[Envelope, int]] = deque()
        self._bytes = 0
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, envelopes: Iterable[Envelope]) -> int:
        """Queue them; returns how many found no room."""
        lost = 0
        for envelope in envelopes:
            size = ENVELOPE_BYTES + len(envelope.note) + carried_bytes(envelope.message)
            over = self._bytes + size > self._bytes_max and self._waiting
            if over or len(self._waiting) >= self._envelopes_max:
                lost += 1
                continue
            self._waiting.append((envelope, size))
            self._bytes += size
        self._wake.set()
        return lost

    def take(self, *, envelopes_max: int, bytes_max: int) -> list[Envelope]:
        """The next for one frame; empty when nothing waits."""
        taken: list[Envelope] = []
        total = 0
        while self._waiting and len(taken) < envelopes_max:
            envelope, size = self._waiting[0]
            total += size
            if taken and total > bytes_max:
                break
            self._waiting.popleft()
            self._bytes -= size
            taken.append(envelope)
        if not self._waiting:
            self._wake.clear()
        return taken

    def wake(self) -> None:
        """Let who waits look again."""
        self._wake.set()

    async def wait(self) -> None:
        await self._wake.wait()

    def clear(self) -> int:
        """Forget everything; returns how many messages."""
        count = len(self._waiting)
        self._waiting.clear()
        self._bytes = 0
        self._wake.clear()
        return count
