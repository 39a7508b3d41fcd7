"""Ports of loopback that stay ours, also while the server that uses them is dead.

Invariant: a reserved port is bound here, without listening, with SO_REUSEADDR. Linux then lets one other socket with
SO_REUSEADDR (gRPC sets it) bind and listen, and never gives the port to anybody's outgoing connection; a port that was
only looked up and closed again would be free for both.
"""

from __future__ import annotations

import socket
from types import TracebackType


class ReservedPorts:
    """`count` ports of the loopback interface; released by `close()` or at the end of a `with`."""

    host = "127.0.0.1"

    def __init__(self, count: int) -> None:
        self._sockets: list[socket.socket] = []
        try:
            for _ in range(count):
                holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
                self._sockets.append(holder)
                holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                holder.bind((self.host, 0))
        except OSError:
            self.close()
            raise
        self.numbers: tuple[int, ...] = tuple(holder.getsockname()[1] for holder in self._sockets)

    def close(self) -> None:
        for holder in self._sockets:
            holder.close()
        self._sockets.clear()

    def __enter__(self) -> ReservedPorts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
