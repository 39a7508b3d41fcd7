"""Bytes that wait for readers.

Owns the counts behind two bounds: of buffers held by reference (replies of push streams), each counted once however
many hold it, and of blocks being written (pulls). Invariants: nobody who holds nothing waits for ever: one block always
fits; who waits is served in order; while somebody waits, a writer whose reader stands still gives way. Must not know:
gRPC, versions.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator


class Held:
    """Buffers held by reference."""

    __slots__ = ("_count", "bytes", "bytes_max", "bytes_most")

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes = 0
        self.bytes_most = 0
        self._count: dict[int, int] = {}
        """Identity of a buffer that is held -> by how many."""

    def take(self, payload: memoryview | bytes) -> bool:
        """Hold it; False when there is no room."""
        key = _identity(payload)
        count = self._count.get(key, 0)
        if not count:
            if self.bytes + len(payload) > self.bytes_max:
                return False
            self.bytes += len(payload)
            self.bytes_most = max(self.bytes_most, self.bytes)
        self._count[key] = count + 1
        return True

    def give(self, payload: memoryview | bytes) -> None:
        key = _identity(payload)
        count = self._count[key] - 1
        if count:
            self._count[key] = count
        else:
            del self._count[key]
            self.bytes -= len(payload)


def _identity(payload: memoryview | bytes) -> int:
    """Of the memory: a number that stands for it as long as somebody holds it."""
    return id(payload.obj if isinstance(payload, memoryview) else payload)


class NoRoom(Exception):
    """As much waits already as may be written at a time."""


class WritingRoom:
    """Blocks being written to slow and fast readers, and as many again that wait to be."""

    __slots__ = ("_patience_s", "_timeout_s", "_waiting", "_writing", "bytes", "bytes_max", "bytes_most", "waiting")

    def __init__(self, bytes_max: int, *, timeout_ms: int, patience_ms: int) -> None:
        """A write may take `timeout_ms`; while others wait for its room, `patience_ms`."""
        self.bytes_max = bytes_max
        self.bytes = 0
        self.bytes_most = 0
        self.waiting = 0
        """Bytes of blocks that wait for room."""
        self._timeout_s = timeout_ms / 1000
        self._patience_s = patience_ms / 1000
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._writing: dict[asyncio.Timeout, float] = {}
        """When each write that goes on began."""

    @contextlib.asynccontextmanager
    async def room(self, size: int) -> AsyncGenerator[None, None]:
        """Wait for room, and hold it. Raises `NoRoom`."""
        await self._enter(size)
        try:
            yield
        finally:
            self.bytes -= size
            self._serve()

    @contextlib.asynccontextmanager
    async def write(self) -> AsyncGenerator[None, None]:
        """Around one write. Raises `TimeoutError` when its reader takes too long."""
        now_s = asyncio.get_running_loop().time()
        limit_s = self._patience_s if self._waiting else self._timeout_s
        async with asyncio.timeout_at(now_s + limit_s) as timeout:
            self._writing[timeout] = now_s
            try:
                yield
            finally:
                del self._writing[timeout]

    async def _enter(self, size: int) -> None:
        if not self._waiting and self._fits(size):
            self._take(size)
            return
        if self._waiting and self.waiting + size > self.bytes_max:
            raise NoRoom
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, future))
        self.waiting += size
        self._hurry()
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.bytes -= size  # it was given meanwhile
            self._serve()
            raise
        finally:
            self.waiting -= size

    def _fits(self, size: int) -> bool:
        return self.bytes == 0 or self.bytes + size <= self.bytes_max

    def _take(self, size: int) -> None:
        self.bytes += size
        self.bytes_most = max(self.bytes_most, self.bytes)

    def _serve(self) -> None:
        while self._waiting:
            size, future = self._waiting[0]
            if not future.done():
                if not self._fits(size):
                    return
                self._take(size)
                future.set_result(None)
            self._waiting.popleft()

    def _hurry(self) -> None:
        """Somebody waits: writes that go on have less time from now on."""
        now_s = asyncio.get_running_loop().time()
        for timeout, begun_s in self._writing.items():
            due_s = max(now_s, begun_s + self._patience_s)
            when_s = timeout.when()
            if not timeout.expired() and when_s is not None and due_s < when_s:
                timeout.reschedule(due_s)
