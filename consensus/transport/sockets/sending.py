"""The sending end of frames: one connection of one channel to a peer.

Owns dialling, the hello, the writing of frames from a queue, and the judgement that a silent peer is gone. Invariants:
payload goes from the caller's buffers to the socket as it lies, whatever a frame is made of; nothing is written before
the peer took this node for whom it is; a peer of which nothing is heard is given up, after
`TransportOptions.quiet_looks_max`. Must not know: what messages mean, other connections. TLS: the socket that `dial`
returns would be the wrapped one.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any

from consensus.core.interface import NodeId
from consensus.transport.codec import encode
from consensus.transport.errors import BadFrame
from consensus.transport.interface import Channel
from consensus.transport.options import TransportOptions
from consensus.transport.queues import SendQueue
from consensus.transport.sockets import wire

_log = logging.getLogger(__name__)
WRITE_BYTES = 1 << 20
"""At most so much is given to the kernel at once: the loop stands still meanwhile."""
PIECES_MAX = 64
READ_BYTES = 4096


class ConnectionEnded(ConnectionError):
    """The other end closed it."""


class FrameLink:
    """`where` and `uuid` say where the peer takes frames, and which folder is expected there; both as of the last
    introduction. One connection at a time."""

    def __init__(
        self,
        channel: Channel,
        *,
        node: NodeId,
        origin: wire.Origin,
        queue: SendQueue,
        options: TransportOptions,
        dropped: Counter[str],
        where: Callable[[], str],
        uuid: Callable[[], bytes],
    ) -> None:
        self._channel = channel
        self._node = node
        self._origin = origin
        self._queue = queue
        self._options = options
        self._dropped = dropped
        self._where = where
        self._uuid = uuid
        self._refusal = self._failure = ""
        self._lost = False
        self._beat_due = False
        self._turn_bytes = 0
        self._quiet_looks = 0
        self._waiter: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Until cancelled: dial and serve, again and again."""
        pause_ms = self._options.reconnect_ms_min
        while True:
            try:
                await self.serve(await self.dial())
                pause_ms = self._options.reconnect_ms_min
            except (OSError, BadFrame):
                pass  # Away, or refused, which is logged and counted.
            except Exception as error:
                self._failed(error)
            self._dropped["bulk_broken"] += 1
            self._dropped["connection_lost"] += self._queue.clear()
            await asyncio.sleep(pause_ms / 1000)
            pause_ms = min(2 * pause_ms, self._options.reconnect_ms_max)

    def _failed(self, error: Exception) -> None:
        """A defect; a link that ended here would never come back, and nobody would hear of it."""
        self._dropped["link_failed"] += 1
        text = f"{type(error).__name__}: {error}"
        if text != self._failure:
            self._failure = text
            _log.error("the %s link to node %d: %s", self._channel.name.lower(), self._node, text, exc_info=error)

    # --- opening ----------------------------------------------------------------------------------------------------

    async def dial(self) -> socket.socket:
        """An open connection. Raises `OSError`, and `BadFrame` when the peer refuses or is none."""
        async with asyncio.timeout(self._options.introduce_ms / 1000):
            connection = await self._connect()
            try:
                await self._open(connection)
            except BadFrame as error:
                connection.close()
                self._refused(str(error))
                raise
            except BaseException:
                connection.close()
                raise
        self._refusal = ""
        return connection

    async def _connect(self) -> socket.socket:
        """At the first of the host's addresses that answers: the peer may listen at one of them only."""
        loop = asyncio.get_running_loop()
        host, _, port = self._where().rpartition(":")
        found = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        problem = OSError(f"{host} has no address")
        for family, kind, protocol, _, address in found:
            try:
                # One that says nothing leaves the others their time.
                async with asyncio.timeout(self._options.introduce_ms / 1000 / len(found)):
                    return await _connected(socket.socket(family, kind, protocol), address)
            except OSError as error:
                problem = error
        raise problem

    async def _open(self, connection: socket.socket) -> None:
        hello = wire.Hello(self._channel, self._origin, self._node, self._uuid())
        await asyncio.get_running_loop().sock_sendall(connection, wire.encode_hello(hello))
        head = await _exactly(connection, wire.VERDICT_BYTES)
        refusal = wire.decode_verdict(head, await _exactly(connection, wire.verdict_text_bytes(head)))
        if refusal:
            raise BadFrame(refusal)

    def _refused(self, text: str) -> None:
        self._dropped["connection_refused"] += 1
        if text != self._refusal:
            self._refusal = text
            _log.error("node %d at %s refuses this node's frames: %s", self._node, self._where(), text)

    # --- open -------------------------------------------------------------------------------------------------------

    async def serve(self, connection: socket.socket) -> None:
        """Send what is queued until the connection ends, and close it. May raise `OSError`."""
        loop = asyncio.get_running_loop()
        self._lost = self._beat_due = False
        self._quiet_looks = 0
        watching = asyncio.create_task(self._watch(), name=f"peer-{self._node}-watch")
        loop.add_reader(connection.fileno(), self._read, connection)
        try:
            await self._pump(connection)
        finally:
            watching.cancel()
            loop.remove_reader(connection.fileno())
            loop.remove_writer(connection.fileno())
            connection.close()

    async def _pump(self, connection: socket.socket) -> None:
        options, queue = self._options, self._queue
        while not self._lost:
            batch = queue.take(envelopes_max=options.frame_envelopes_max, bytes_max=options.frame_bytes_max)
            if batch:
                await self._write(connection, wire.frame_parts(*encode(batch)))
            elif self._beat_due:
                self._beat_due = False
                await self._write(connection, [memoryview(wire.beat())])
            else:
                await queue.wait()

    async def _write(self, connection: socket.socket, parts: list[memoryview]) -> None:
        """All of it. Others get their turn after each `WRITE_BYTES`, in one frame or many."""
        at = 0
        while at < len(parts):
            piece, total = [], 0
            for part in parts[at : at + PIECES_MAX]:
                piece.append(part[: WRITE_BYTES - total])
                total += len(piece[-1])
                if total >= WRITE_BYTES:
                    break
            try:
                sent = connection.sendmsg(piece)
            except (BlockingIOError, InterruptedError):
                await self._writable(connection)
                continue
            while at < len(parts) and sent >= len(parts[at]):
                sent -= len(parts[at])
                at += 1
            if sent:
                parts[at] = parts[at][sent:]
            self._turn_bytes += total
            if self._turn_bytes >= WRITE_BYTES:
                self._turn_bytes = 0
                await asyncio.sleep(0)

    async def _writable(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        loop.add_writer(connection.fileno(), self._wake)
        try:
            if not self._lost:
                await self._waiter
        finally:
            loop.remove_writer(connection.fileno())
            self._waiter = None
        if self._lost:
            raise ConnectionEnded

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- is it there? -----------------------------------------------------------------------------------------------

    def _read(self, connection: socket.socket) -> None:
        """The peer says nothing but that it is there."""
        try:
            data = connection.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        self._quiet_looks = 0
        if not data:
            self._end()
            asyncio.get_running_loop().remove_reader(connection.fileno())

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._options.keepalive_timeout_ms / 1000)
            self._quiet_looks += 1
            if self._quiet_looks > self._options.quiet_looks_max:
                self._dropped["connection_silent"] += 1
                self._end()
                return
            self._beat_due = True
            self._queue.wake()

    def _end(self) -> None:
        self._lost = True
        self._queue.wake()
        self._wake()


async def _connected(connection: socket.socket, address: tuple[Any, ...]) -> socket.socket:
    try:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(connection, address)
    except BaseException:
        connection.close()
        raise
    return connection


async def _exactly(connection: socket.socket, length: int) -> bytes:
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < length:
        more = await loop.sock_recv(connection, length - len(data))
        if not more:
            raise ConnectionEnded
        data += more
    return data
