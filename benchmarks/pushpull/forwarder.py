"""A link to one node: forwards TCP connections, and delays those that another server opened, both ways.

    python -m benchmarks.pushpull.forwarder --listen HOST:PORT --to HOST:PORT --delay-ms 2

Whose connection it is, the kernel says: the socket at its other end belongs to a process, and a server is known by its
command line. Bytes leave in order, each no sooner than the delay after it came; so a round trip takes twice the delay
more. What waits is bounded: beyond, nothing is read, as on a link whose pipe is full. Two threads a direction, for
Python's sockets let go of the interpreter while they copy.
"""

from __future__ import annotations

import argparse
import os
import queue
import socket
import threading
import time
from pathlib import Path

READ_BYTES = 1 << 20
WAITING_MAX = 256
"""Pieces of at most READ_BYTES on their way in one direction."""
_LISTEN_BACKLOG = 64


def owner_is_server(connection: socket.socket) -> bool:
    """Whether the process at the other end is one of our servers."""
    inode = inode_of(connection.getpeername()[1], connection.getsockname()[1])
    return inode is not None and any(has_socket(pid, inode) for pid in servers())


def inode_of(local_port: int, remote_port: int) -> str | None:
    """Of the socket that is connected from one port to the other."""
    for table in ("tcp", "tcp6"):  # gRPC speaks IPv4 through sockets that could do both
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            local, remote = (int(fields[at].rpartition(":")[2], 16) for at in (1, 2))
            if (local, remote) == (local_port, remote_port):
                return fields[9]
    return None


def servers() -> list[int]:
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                words = Path(f"/proc/{entry.name}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words[1:4] == [b"-m", b"paramserver", b"server"]:
                found.append(int(entry.name))
    return found


def has_socket(pid: int, inode: str) -> bool:
    try:
        return any(os.readlink(one.path) == f"socket:[{inode}]" for one in os.scandir(f"/proc/{pid}/fd"))
    except OSError:
        return False


class Pipe:
    """One direction of a connection."""

    def __init__(self, source: socket.socket, target: socket.socket, delay_s: float) -> None:
        self._source, self._target, self._delay_s = source, target, delay_s
        self._waiting: queue.Queue[tuple[float, bytes]] = queue.Queue(WAITING_MAX)

    def start(self) -> None:
        for work in (self._read, self._write) if self._delay_s else (self._pass_on,):
            threading.Thread(target=work, daemon=True).start()

    def _pass_on(self) -> None:
        buffer = bytearray(READ_BYTES)
        view = memoryview(buffer)
        try:
            while count := self._source.recv_into(buffer):
                self._target.sendall(view[:count])
        except OSError:
            pass
        end(self._target)

    def _read(self) -> None:
        data = b"-"
        while data:
            try:
                data = self._source.recv(READ_BYTES)
            except OSError:
                data = b""
            self._waiting.put((time.monotonic() + self._delay_s, data))

    def _write(self) -> None:
        while True:
            due_s, data = self._waiting.get()
            left_s = due_s - time.monotonic()
            if left_s > 0:
                time.sleep(left_s)
            if not data:
                end(self._target)
                return
            try:
                self._target.sendall(data)
            except OSError:
                end(self._source)  # ends the reader, whose last piece ends us
                while self._waiting.get()[1]:
                    pass
                return


def end(connection: socket.socket) -> None:
    """Both ways: gRPC has no use for a half of a connection."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


def serve(listen: tuple[str, int], to: tuple[str, int], delay_s: float) -> None:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(listen)
    listener.listen(_LISTEN_BACKLOG)
    print("ready", flush=True)
    while True:
        near, _ = listener.accept()
        threading.Thread(target=connect, args=(near, to, delay_s), daemon=True).start()


def connect(near: socket.socket, to: tuple[str, int], delay_s: float) -> None:
    try:
        far = socket.create_connection(to)
    except OSError:
        near.close()  # nobody is there yet
        return
    for one in (near, far):
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    delay_s = delay_s if owner_is_server(near) else 0.0
    Pipe(near, far, delay_s).start()
    Pipe(far, near, delay_s).start()


def address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listen", type=address, required=True)
    parser.add_argument("--to", type=address, required=True)
    parser.add_argument("--delay-ms", type=float, required=True)
    options = parser.parse_args()
    serve(options.listen, options.to, options.delay_ms / 1000)


if __name__ == "__main__":
    main()
