"""The receiving end of frames: a port of its own, and of each peer a connection for control and one for bulk.

Owns the listening socket, what is asked of who connects, and the reading of frames. Invariants: a frame is received
where it stays: one buffer a frame, made once its sender is known and its length judged, never written again and freed
when nothing refers to it (RULES R6); payloads are views into it; what is malformed, or of a stranger, ends its
connection, counted, and nothing else. Must not know: what messages mean, groups. TLS: the socket that `_accept` hands
on would be the wrapped one.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from consensus.core.interface import NodeId
from consensus.transport.codec import decode, verified
from consensus.transport.errors import BadFrame
from consensus.transport.interface import Channel, Envelope, Receiver
from consensus.transport.options import TransportOptions
from consensus.transport.sockets import wire

if TYPE_CHECKING:
    from consensus.transport.grpc.introduction import Introductions

_log = logging.getLogger(__name__)
UNKNOWN_MAX = 32
"""Connections that have not said yet who they are; for a further one the oldest is closed. A peer says it at once."""
BACKLOG = 64
READ_BYTES = 1 << 20
"""At most so much is taken at once: the loop stands still meanwhile."""
WAKE_BYTES = 256 << 10
"""Inside a large frame the kernel is to wake us for no less."""
AT_ONCE_BYTES = 64 << 10
"""The rest of a frame up to this size has most likely come with its beginning, and is not waited for: a busy loop takes
long to come round again, and what is small is votes and heartbeats."""
ACCEPT_PAUSE_S = 1.0
"""After a failed accept (no descriptor left)."""


class Incoming(Protocol):
    """How the transport hears of a peer's control connections."""

    def incoming(self, node: NodeId, *, incarnation: int, opened: bool) -> None: ...


class FrameListener:
    """On the event loop's thread. `receiver` is set before the first peer is known."""

    def __init__(
        self,
        *,
        node: NodeId,
        introductions: Introductions,
        incoming: Incoming,
        options: TransportOptions,
        dropped: Counter[str],
    ) -> None:
        self.node = node
        self.introductions = introductions
        self.incoming = incoming
        self.options = options
        self.dropped = dropped
        self.receiver: Receiver | None = None
        self._socket: socket.socket | None = None
        self._unknown: dict[Connection, None] = {}
        """Oldest first."""
        self._peers: dict[tuple[NodeId, Channel], Connection] = {}
        self._handle: asyncio.TimerHandle | None = None

    def listen(self, address: str) -> int:
        """Take connections at host:port; returns the port. Raises `OSError`."""
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        family, _, _, _, where = socket.getaddrinfo(
            host or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        both = family == socket.AF_INET6 and host in ("", "::") and socket.has_dualstack_ipv6()
        self._socket = socket.create_server(where, family=family, backlog=BACKLOG, dualstack_ipv6=both)
        self._socket.setblocking(False)
        self._start()
        return int(self._socket.getsockname()[1])

    def _start(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().add_reader(self._socket.fileno(), self._accept)

    def close(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        for connection in [*self._unknown, *self._peers.values()]:
            connection.close()

    def _accept(self) -> None:
        assert self._socket is not None
        try:
            taken, _ = self._socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            self.dropped["connection_not_accepted"] += 1
            _log.error("cannot take a connection of a node: %s", error)
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._socket.fileno())
            self._handle = loop.call_later(ACCEPT_PAUSE_S, self._start)
            return
        if len(self._unknown) >= UNKNOWN_MAX:
            self.dropped["connections_full"] += 1
            next(iter(self._unknown)).close()
        taken.setblocking(False)
        taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._unknown[Connection(self, taken)] = None

    def known(self, hello: wire.Hello, connection: Connection) -> None:
        """It is that peer's; an earlier one of its is over."""
        self._unknown.pop(connection, None)
        earlier = self._peers.get((hello.origin.node, hello.channel))
        if earlier is not None:
            earlier.close()
        self._peers[hello.origin.node, hello.channel] = connection
        self._tell(hello, opened=True)

    def gone(self, hello: wire.Hello | None, connection: Connection) -> None:
        self._unknown.pop(connection, None)
        if hello is not None:
            del self._peers[hello.origin.node, hello.channel]
            self._tell(hello, opened=False)

    def _tell(self, hello: wire.Hello, *, opened: bool) -> None:
        if hello.channel is Channel.CONTROL:
            self.incoming.incoming(hello.origin.node, incarnation=hello.origin.incarnation, opened=opened)


class Connection:
    """From the hello on."""

    def __init__(self, listener: FrameListener, connection: socket.socket) -> None:
        self._listener = listener
        self._socket = connection
        self._loop = asyncio.get_running_loop()
        self._hello: wire.Hello | None = None
        self._prefix: wire.Prefix | None = None
        """Of the frame whose body comes in."""
        self._body = memoryview(b"")
        self._body_at = 0
        self._head = bytearray(wire.HELLO_BYTES)
        """The hello, then prefixes, as far as they are there."""
        self._head_at = 0
        self._wake_bytes = 1
        self._reading = False
        self._closed = False
        self._quiet_looks = 0
        self._timer = self._loop.call_later(listener.options.introduce_ms / 1000, self._watch)
        self._read(True)

    # --- life -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._read(False)
        self._timer.cancel()
        self._socket.close()
        self._body = memoryview(b"")
        self._listener.gone(self._hello, self)

    def _read(self, reading: bool) -> None:
        """Take what comes, or leave it where it is."""
        if reading == self._reading:
            return
        self._reading = reading
        if reading:
            self._loop.add_reader(self._socket.fileno(), self._readable)
        else:
            self._loop.remove_reader(self._socket.fileno())

    def _watch(self) -> None:
        """Who says nothing is gone; and a sign of life from here."""
        options = self._listener.options
        late = self._hello is None
        self._quiet_looks += 1
        if self._reading and not late:
            self._readable()  # A slow link may have brought less than what the kernel was to wake us for.
        if self._closed:
            return
        if late or self._quiet_looks > options.quiet_looks_max:
            self._listener.dropped["hello_late" if late else "connection_silent"] += 1
            self.close()
            return
        self._timer = self._loop.call_later(options.keepalive_timeout_ms / 1000, self._watch)
        self._say(wire.beat())

    def _say(self, data: bytes) -> None:
        try:
            sent = self._socket.send(data)
        except OSError:
            sent = 0
        if sent < len(data):  # It reads nothing at all, or is gone.
            self.close()

    def _refuse(self, problem: str) -> None:
        if self._hello is None:
            self._say(wire.encode_verdict(problem))
        self.close()

    # --- reading ----------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        try:
            self._receive()
        except BadFrame as error:
            self._listener.dropped["bad_frame"] += 1
            self._refuse(str(error))
        except OSError:
            self.close()
        except BaseException:
            self.close()
            raise

    def _receive(self) -> None:
        body = self._body[self._body_at :]
        head = memoryview(self._head)[self._head_at :]
        if len(body) > READ_BYTES:
            into = [body[:READ_BYTES]]
        else:
            into = [body, head] if len(body) else [head]
        try:
            count = self._socket.recvmsg_into(into)[0]
        except (BlockingIOError, InterruptedError):
            return
        if not count:
            self.close()
            return
        self._quiet_looks = 0
        of_body = min(count, len(body))
        self._body_at += of_body
        self._head_at += count - of_body
        if self._body_at < len(self._body):
            self._wake_for(len(self._body) - self._body_at)
            return
        if self._prefix is not None:
            self._frame(self._prefix)
        else:
            self._next()
            if self._prefix is not None and len(self._body) <= AT_ONCE_BYTES:
                self._receive()

    def _wake_for(self, missing: int) -> None:
        wanted = min(missing, WAKE_BYTES) if missing >= 2 * wire.JOIN_BYTES else 1
        if wanted != self._wake_bytes:
            self._wake_bytes = wanted
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wanted)

    def _next(self) -> None:
        """What the head says, once it is there."""
        self._wake_for(1)
        if self._head_at < len(self._head):
            return
        data = bytes(self._head)
        self._head_at = 0
        if self._hello is None:
            self._greet(wire.decode_hello(data))
            self._head = bytearray(wire.PREFIX_BYTES)
            return
        prefix = wire.decode_prefix(data, bytes_max=self._listener.options.message_bytes_max)
        if prefix.kind == wire.FRAME:
            self._prefix = prefix
            self._make_room(prefix.header_bytes + prefix.payload_bytes)

    def _make_room(self, length: int) -> None:
        self._body, self._body_at = memoryview(bytearray(length)), 0

    def _greet(self, hello: wire.Hello) -> None:
        listener = self._listener
        problem = listener.introductions.stranger(hello.origin) or self._not_me(hello)
        if problem:
            listener.dropped["frame_of_stranger"] += 1
            self._refuse(problem)
            return
        self._say(wire.encode_verdict(""))
        if self._closed:
            return
        self._hello = hello
        self._timer.cancel()
        self._timer = self._loop.call_later(listener.options.keepalive_timeout_ms / 1000, self._watch)
        listener.known(hello, self)

    def _not_me(self, hello: wire.Hello) -> str:
        node, uuid = self._listener.node, self._listener.introductions.uuid
        if (hello.to_node, hello.to_uuid) == (node, uuid):
            return ""
        return (
            f"to_node, to_uuid: {hello.to_node}, {hello.to_uuid.hex()}, but node {node} with folder {uuid.hex()} "
            "answers here; check what forwards to it (--dial)"
        )

    # --- frames -----------------------------------------------------------------------------------------------------

    def _frame(self, prefix: wire.Prefix) -> None:
        assert self._hello is not None
        body, origin = self._body.toreadonly(), self._hello.origin
        self._prefix, self._body, self._body_at = None, memoryview(b""), 0
        header = bytes(body[: prefix.header_bytes])
        prefix.check(header)
        if self._listener.introductions.known(origin.node) != origin.node_uuid:
            self._listener.dropped["frame_of_stranger"] += 1  # Somebody took its place meanwhile.
            self.close()
            return
        envelopes = decode(header, body[prefix.header_bytes :], origin.incarnation)
        self._verify(verified(envelopes, self._listener.dropped))

    def _verify(self, steps: Iterator[list[Envelope] | None]) -> None:
        """Reading goes on when all is checked."""
        step = next(steps)
        if step is None:
            self._read(False)
            self._loop.call_soon(self._go_on, steps)
            return
        if step and self._listener.receiver is not None and self._hello is not None:
            self._listener.receiver.received(self._hello.origin.node, step)
        if not self._closed:
            self._read(True)
            self._next()

    def _go_on(self, steps: Iterator[list[Envelope] | None]) -> None:
        if self._closed:
            return
        try:
            self._verify(steps)
        except BadFrame as error:
            self._listener.dropped["bad_frame"] += 1
            self._refuse(str(error))
        except BaseException:
            self.close()
            raise
