"""Who is served now, when those who are not come again, and how a reader that stands still is got rid of.

Owns the counts of calls and connections of clients, and the time to retry. Invariant: beyond a bound a call is refused
with a time to retry, before anything of it is read. Must not know: what calls do.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import Counter
from urllib.parse import unquote

from paramserver.rpc.limits import Limits
from paramserver.wire.errors import Reason, Refusal

DESCRIPTORS = "/proc/self/fd"


class Busy:
    """Refusals of one node, and the time after which each suggests to come again. Whoever is refused comes back after
    that time, so what comes in a second grows with the number of clients and falls with the time: it is moved, once a
    second, to where as many come as are wanted."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.retry_after_ms = limits.retry_after_ms
        self._count = 0
        self._since_s: float | None = None

    def refusal(self, message: str, *, hint: str = "") -> Refusal:
        self._note(asyncio.get_running_loop().time())
        return Refusal(Reason.BUSY, message, hint=hint, retry_after_ms=self.retry_after_ms)

    def _note(self, now_s: float) -> None:
        limits = self._limits
        if self._since_s is None:
            self._since_s = now_s
        passed_s = now_s - self._since_s
        if passed_s >= 1:
            wanted_ms = self.retry_after_ms * self._count / passed_s / limits.refusals_per_s
            self.retry_after_ms = round(min(max(wanted_ms, limits.retry_after_ms), limits.retry_after_ms_max))
            self._count, self._since_s = 0, now_s
        self._count += 1

    def not_reading(self, within_ms: int) -> Refusal:
        message = f"nothing of what waits for this reader was read for {within_ms} ms"
        return self.refusal(message, hint="read answers as they come")


class Admission:
    """Used on the event loop only."""

    def __init__(self, limits: Limits, busy: Busy | None = None) -> None:
        self._limits = limits
        self._busy = busy or Busy(limits)
        self.calls = 0
        self._of: Counter[str] = Counter()
        """Calls by connection."""

    @property
    def connections(self) -> int:
        return len(self._of)

    def enter(self, peer: str) -> None:
        """A call on the connection of that name begins. Raises `Refusal`; otherwise `leave` follows."""
        limits = self._limits
        if self.calls >= limits.calls_max:
            raise self._busy.refusal(f"{self.calls} calls are served by this node, its bound")
        if peer not in self._of and len(self._of) >= limits.connections_max:
            raise self._busy.refusal(f"{len(self._of)} connections are served by this node, its bound")
        self.calls += 1
        self._of[peer] += 1

    def leave(self, peer: str) -> None:
        self.calls -= 1
        self._of[peer] -= 1
        if not self._of[peer]:
            del self._of[peer]


def sever(peer: str) -> bool:
    """Shut down the TCP connection that gRPC calls `peer` ("ipv4:127.0.0.1:4711"). gRPC keeps a call that was ended
    until its client has read the end, and offers no other way to part from one that never does."""
    host, _, port = unquote(peer.partition(":")[2]).rpartition(":")
    wanted = host.strip("[]"), port
    try:
        numbers = os.listdir(DESCRIPTORS)
    except OSError:
        return False
    found = False
    for number in numbers:
        try:
            with socket.socket(fileno=os.dup(int(number))) as copy:
                name = copy.getpeername()
                if isinstance(name, tuple) and (name[0].removeprefix("::ffff:"), str(name[1])) == wanted:
                    copy.shutdown(socket.SHUT_RDWR)
                    found = True
        except OSError:
            continue  # no socket, or gone
    return found
