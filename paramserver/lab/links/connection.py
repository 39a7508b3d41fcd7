"""One connection through the proxy: who dialled, who is dialled for it, and the two flows between them.

Invariants: the other side is dialled only while packets pass both ways; a reset or an end of one side reaches the other
as what it is, and at once where nothing is wrong; descriptors are closed exactly once. Must not know: other
connections, the control socket.
"""

from __future__ import annotations

import errno
import random
import socket
import struct
from collections.abc import Callable

from paramserver.lab.links.conditions import RESET, Condition
from paramserver.lab.links.flow import Flow
from paramserver.lab.links.reactor import READ, WRITE, Reactor

_RESET_AT_CLOSE = struct.pack("ii", 1, 0)
DRAIN_S = 5.0
"""How long the receiver of a connection that was cut behind its last byte gets to close it, too."""
DRAIN_BYTES = 1 << 16


class Connection:
    """`near` was accepted from the one who dialled. `gone(self)` once, at the end."""

    def __init__(
        self,
        reactor: Reactor,
        near: socket.socket,
        target: tuple[str, int],
        *,
        forth: Condition,
        back: Condition,
        draws: random.Random,
        gone: Callable[[Connection], None],
    ) -> None:
        self._reactor = reactor
        self._near = near
        self._far: socket.socket | None = None
        self._target = target
        self._gone = gone
        self._dialling = False
        self._closed = False
        self._draining = False
        self.forth = self._flow(forth, draws, cut=lambda: self._cut(self._near, self._far))
        self.back = self._flow(back, draws, cut=lambda: self._cut(self._far, self._near))
        self.forth.source = self.back.target = near
        _prepare(near)

    def _flow(self, condition: Condition, draws: random.Random, *, cut: Callable[[], None]) -> Flow:
        flow = Flow(
            self._reactor,
            condition,
            draws,
            broke=self.reset,
            cut=cut,
            ended=self._ended,
            target_lost=lambda: self._other(flow).source_lost(),
            changed=self._look,
        )
        return flow

    def _other(self, flow: Flow) -> Flow:
        return self.back if flow is self.forth else self.forth

    # --- life

    def start(self) -> None:
        """Dial, if packets pass; else that waits until they do."""
        if self._closed or self._far is not None:
            return
        if RESET in (self.forth.condition.mode, self.back.condition.mode):
            self.reset()
            return
        if not (self.forth.condition.passes and self.back.condition.passes):
            return
        self._far = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        _prepare(self._far)
        self._dialling = True
        error = self._far.connect_ex(self._target)
        if error not in (0, errno.EINPROGRESS):
            self.reset()
            return
        self._reactor.watch(self._far.fileno(), WRITE, self._dialled)

    def _dialled(self, readable: bool, writable: bool) -> None:
        assert self._far is not None
        self._dialling = False
        self._reactor.forget(self._far.fileno())
        if self._far.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.reset()
            return
        self.forth.target = self.back.source = self._far
        self.forth.flush()
        self._look()

    def change(self, *, forth: Condition, back: Condition) -> None:
        if RESET in (forth.mode, back.mode):
            self.reset()
            return
        self.forth.change(forth)
        if not self._closed:
            self.back.change(back)
        self.start()
        self._look()

    # --- readiness

    def _look(self) -> None:
        """Watch for what the flows want now."""
        if self._closed or self._draining or self._far is None or self._dialling:
            return
        forth, back = self.forth, self.back
        for end, out, into, ready in (
            (self._near, forth, back, self._near_ready),
            (self._far, back, forth, self._far_ready),
        ):
            events = (READ if out.wants_read() else 0) | (WRITE if into.wants_write() else 0)
            self._reactor.watch(end.fileno(), events, ready)

    def _near_ready(self, readable: bool, writable: bool) -> None:
        self._ready(self.forth, self.back, readable, writable)

    def _far_ready(self, readable: bool, writable: bool) -> None:
        self._ready(self.back, self.forth, readable, writable)

    def _ready(self, out: Flow, into: Flow, readable: bool, writable: bool) -> None:
        if writable and not into.over:
            into.writable()
        if readable and not out.over and not self._closed:
            out.readable()
        self._look()

    # --- ends

    def _ended(self) -> None:
        if self.forth.over and self.back.over:
            self._close()

    def reset(self) -> None:
        """Both sides get a reset."""
        for end in (self._near, self._far):
            if end is not None and end.fileno() >= 0:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
        self._close()

    def _cut(self, source: socket.socket | None, target: socket.socket | None) -> None:
        """The source is reset; the target keeps what it got, and its side ends in order."""
        if self._closed or source is None or target is None:
            return
        self._draining = True
        for flow in (self.forth, self.back):
            flow.close()
        self._reactor.forget(source.fileno())
        source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
        source.close()
        try:
            target.shutdown(socket.SHUT_WR)
        except OSError:
            self._close()
            return
        self._reactor.watch(target.fileno(), READ, lambda *_: self._drain(target))
        self._reactor.at(self._reactor.now() + DRAIN_S, self._close)

    def _drain(self, target: socket.socket) -> None:
        try:
            if target.recv(DRAIN_BYTES):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._close()

    def _close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for flow in (self.forth, self.back):
            flow.close()
        for end in (self._near, self._far):
            if end is not None and end.fileno() >= 0:
                self._reactor.forget(end.fileno())
                end.close()
        self._gone(self)

    def close(self) -> None:
        self._close()


def _prepare(one: socket.socket) -> None:
    one.setblocking(False)
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
