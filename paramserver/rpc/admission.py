"""Who is served now, and how a reader that stands still is got rid of.

Owns the counts of calls and connections of clients. Invariant: beyond a bound a call is refused with a time to retry,
before anything of it is read. Must not know: what calls do.
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from urllib.parse import unquote

from paramserver.rpc.limits import Limits
from paramserver.wire.errors import Reason, Refusal

DESCRIPTORS = "/proc/self/fd"


class Admission:
    """Used on the event loop only."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
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
            raise busy(f"{self.calls} calls are served by this node, its bound", limits)
        if peer not in self._of and len(self._of) >= limits.connections_max:
            raise busy(f"{len(self._of)} connections are served by this node, its bound", limits)
        self.calls += 1
        self._of[peer] += 1

    def leave(self, peer: str) -> None:
        self.calls -= 1
        self._of[peer] -= 1
        if not self._of[peer]:
            del self._of[peer]


def busy(message: str, limits: Limits) -> Refusal:
    return Refusal(Reason.BUSY, message, retry_after_ms=limits.retry_after_ms)


def not_reading(limits: Limits, within_ms: int) -> Refusal:
    return Refusal(
        Reason.BUSY,
        f"nothing of what waits for this reader was read for {within_ms} ms",
        hint="read answers as they come",
        retry_after_ms=limits.retry_after_ms,
    )


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
