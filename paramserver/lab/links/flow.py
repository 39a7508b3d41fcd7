"""One direction of one connection: bytes from a source to a target, under a condition.

Invariants: bytes leave in order, and the end of the source after the last of them; where nothing is wrong they go from
socket to socket in the kernel (splice), so that a clear link costs little; what waits here is bounded, and beyond it
nothing is read, as on a link whose pipe is full. Must not know: who the ends are, how the connection came about.
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from paramserver.lab.links.conditions import (
    BLACK_HOLE,
    CLEAR,
    DUPLICATE_EVERY_MS,
    LOSSES_MAX,
    RETRANSMIT_MS,
    Condition,
)
from paramserver.lab.links.reactor import Reactor

PIPE_BYTES = 1 << 20
"""Of the kernel pipe between the sockets; smaller where the system allows no more."""
CHUNK_BYTES = 64 << 10
"""Read at a time where bytes may be lost."""
WAITING_BYTES_MAX = 32 << 20
RATE_WAITING_S = 0.1
"""What waits behind a rate limit, as time; so back-pressure is felt soon."""
ROUNDS_MAX = 8
"""Of reading before others get their turn."""
CUT_AFTER_MS = 20
"""Between the delivery of a chunk that will be sent again and the break: the receiver takes it up meanwhile."""

END = "end"
BREAK = "break"
CUT = "cut"


@dataclass(slots=True)
class Waiting:
    """Bytes, or what happens after the last of them."""

    due_s: float
    content: memoryview | str


class Flow:
    """`broke`: the connection has to be reset; `cut`: the source's side of it, when all is delivered; `ended`: the
    source's end was delivered; `target_lost`: writing to the target failed."""

    def __init__(
        self,
        reactor: Reactor,
        condition: Condition,
        draws: random.Random,
        *,
        broke: Callable[[], None],
        cut: Callable[[], None],
        ended: Callable[[], None],
        target_lost: Callable[[], None],
        changed: Callable[[], None],
    ) -> None:
        self.condition = condition
        self.source: socket.socket | None = None
        self.target: socket.socket | None = None
        self.over = False
        """Nothing more will be forwarded."""
        self.bytes = 0
        """Delivered."""
        self._reactor = reactor
        self._draws = draws
        self._broke, self._cut, self._ended = broke, cut, ended
        self._target_lost, self._changed = target_lost, changed
        self._pipe: tuple[int, int] | None = None
        self._in_pipe = 0
        self._waiting: deque[Waiting] = deque()
        self._waiting_bytes = 0
        self._source_over = False
        """Its end was read, or is due; nothing more is read."""
        self._swallowed = False
        self._last_due_s = 0.0
        self._free_s = 0.0
        """When a rate-limited link has sent what it took."""
        self._timer_s = float("inf")
        self._duplicated_s = float("-inf")
        self._blocked = False

    # --- what it wants

    def wants_read(self) -> bool:
        if self.over or self._source_over or self.source is None or self.target is None:
            return False
        if self.condition.mode == BLACK_HOLE:
            return True
        if self.condition.mode != CLEAR:
            return False
        if self.condition.shaped or self._waiting:
            return self._waiting_bytes < self._room()
        return not self._in_pipe

    def wants_write(self) -> bool:
        if self.over or self.target is None or not self._may_deliver():
            return False
        return bool(self._in_pipe) or self._blocked

    def _may_deliver(self) -> bool:
        return self.condition.mode == CLEAR

    def _room(self) -> int:
        rate = self.condition.bytes_per_s
        return int(min(WAITING_BYTES_MAX, max(rate * RATE_WAITING_S, 1.0))) if rate else WAITING_BYTES_MAX

    # --- acts

    def change(self, condition: Condition) -> None:
        before, self.condition = self.condition, condition
        if self.over:
            return
        if before.mode == BLACK_HOLE and condition.mode != BLACK_HOLE and self._swallowed:
            self._broke()
            return
        now = self._reactor.now()
        latest_s = now + (condition.delay_ms + condition.jitter_ms) / 1000
        for one in self._waiting:
            one.due_s = min(one.due_s, latest_s)
        self._last_due_s = min(self._last_due_s, latest_s)
        self._free_s = now
        self._timer_s = float("inf")
        self.flush()
        self._changed()

    def source_lost(self) -> None:
        """The source is gone: told to the target as soon as the condition lets it."""
        self._enqueue(BREAK)

    def readable(self) -> None:
        for _ in range(ROUNDS_MAX):
            if not self.wants_read():
                return
            try:
                more = self._read()
            except BlockingIOError:
                return
            except OSError:
                self._enqueue(BREAK)
                return
            if not more:
                return

    def _read(self) -> bool:
        """False: there is nothing more for now."""
        assert self.source is not None
        condition = self.condition
        if condition.mode == BLACK_HOLE:
            self._swallowed = True
            if not self.source.recv(PIPE_BYTES):
                self._source_over = True
            return True
        if condition.shaped or self._waiting:
            chunk = CHUNK_BYTES if condition.loss or condition.duplicate else PIPE_BYTES
            if condition.bytes_per_s:
                chunk = max(1, min(chunk, self._room() - self._waiting_bytes))
            data = self.source.recv(chunk)
            self._enqueue(memoryview(data) if data else END)
            return bool(data)
        if self._pipe is None:
            self._pipe = _new_pipe()
        count = os.splice(
            self.source.fileno(), self._pipe[1], PIPE_BYTES, flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE
        )
        if not count:
            self._enqueue(END)
            return False
        self._in_pipe = count
        return self._drain()

    def writable(self) -> None:
        self._blocked = False
        if self._drain():
            self.flush()

    def _drain(self) -> bool:
        """What is in the pipe; False when the target takes no more."""
        assert self.target is not None
        while self._in_pipe:
            assert self._pipe is not None
            try:
                count = os.splice(
                    self._pipe[0],
                    self.target.fileno(),
                    self._in_pipe,
                    flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE,
                )
            except BlockingIOError:
                return False
            except OSError:
                self._lose_target()
                return False
            self._in_pipe -= count
            self.bytes += count
        return True

    # --- what waits

    def _enqueue(self, content: memoryview | str) -> None:
        condition, now = self.condition, self._reactor.now()
        if content in (END, BREAK):
            self._source_over = True
        if condition.mode == BLACK_HOLE:
            self._swallowed = True
            return
        due_s = now
        if condition.shaped:
            due_s += max(0.0, condition.delay_ms + self._draws.uniform(-1, 1) * condition.jitter_ms) / 1000
            size = len(content) if isinstance(content, memoryview) else 0
            if condition.bytes_per_s:
                self._free_s = max(now, self._free_s) + size / condition.bytes_per_s
                due_s += self._free_s - now
            for loss in range(LOSSES_MAX):
                if not condition.loss or self._draws.random() >= condition.loss:
                    break
                due_s += RETRANSMIT_MS / 1000 * 2**loss
            else:
                content = BREAK
                self._source_over = True
        due_s = max(due_s, self._last_due_s)
        self._put(due_s, content)
        if isinstance(content, memoryview) and condition.duplicate and self._duplicates(now):
            self._source_over = True
            self._put(due_s + CUT_AFTER_MS / 1000, CUT)
        self.flush()

    def _put(self, due_s: float, content: memoryview | str) -> None:
        self._last_due_s = due_s
        self._waiting.append(Waiting(due_s, content))
        self._waiting_bytes += len(content) if isinstance(content, memoryview) else 0

    def _duplicates(self, now: float) -> bool:
        if now - self._duplicated_s < DUPLICATE_EVERY_MS / 1000:
            return False
        self._duplicated_s = now
        return self._draws.random() < self.condition.duplicate

    def flush(self) -> None:
        """Deliver what is due."""
        while self._waiting and not self.over and self._may_deliver() and self.target is not None:
            if self._in_pipe or self._blocked:
                return
            first = self._waiting[0]
            if first.due_s > self._reactor.now():
                self._wake_at(first.due_s)
                return
            if isinstance(first.content, str):
                self._waiting.popleft()
                self._act(first.content)
                continue
            try:
                count = self.target.send(first.content)
            except BlockingIOError:
                self._blocked = True
                self._changed()
                return
            except OSError:
                self._lose_target()
                return
            self.bytes += count
            self._waiting_bytes -= count
            if count == len(first.content):
                self._waiting.popleft()
            else:
                first.content = first.content[count:]

    def _act(self, what: str) -> None:
        assert self.target is not None
        if what == BREAK:
            self._broke()
        elif what == CUT:
            self._cut()
        else:
            self.over = True
            try:
                self.target.shutdown(socket.SHUT_WR)
            except OSError:
                self._lose_target()
                return
            self._ended()

    def _wake_at(self, due_s: float) -> None:
        if due_s < self._timer_s:
            self._timer_s = due_s
            self._reactor.at(due_s, self._wake)

    def _wake(self) -> None:
        self._timer_s = float("inf")
        if not self.over:
            self.flush()
            self._changed()

    def _lose_target(self) -> None:
        """Who else writes there? Nobody: what is left has nowhere to go."""
        self.over = True
        self._target_lost()

    def close(self) -> None:
        self.over = True
        self._waiting.clear()
        if self._pipe is not None:
            for descriptor in self._pipe:
                os.close(descriptor)
            self._pipe = None


def _new_pipe() -> tuple[int, int]:
    ends = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except OSError:
        pass  # as large as it is
    return ends
