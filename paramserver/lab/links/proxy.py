"""The process between the nodes: a listener for each ordered pair, and the conditions of each direction.

Owns the control socket: each line is a JSON object, each is answered by one, and when the answer comes the fault is in
force. `{"op": "add", "from": 1, "to": 2, "listen": "host:port", "target": "host:port"}`;
`{"op": "set", "conditions": [[1, 2, {...}], ...]}`, all of them at once; `{"op": "counts"}`.

Invariant: what flows from 1 to 2 is under the condition (1, 2), whoever of the two dialled. Must not know: what goes
over the links, who controls it.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
from collections import Counter
from functools import partial
from typing import Any, TypeAlias

from paramserver.lab.links.conditions import Condition
from paramserver.lab.links.connection import Connection
from paramserver.lab.links.reactor import READ, WRITE, Reactor

Pair: TypeAlias = tuple[int, int]
BACKLOG = 128
LINE_BYTES_MAX = 1 << 20
CLEAR = Condition()


class Proxy:
    def __init__(self, reactor: Reactor, seed: int = 0) -> None:
        self._reactor = reactor
        self._draws = random.Random(seed)
        self._conditions: dict[Pair, Condition] = {}
        self._connections: dict[Pair, set[Connection]] = {}
        """By who dialled whom."""
        self._opened: Counter[Pair] = Counter()
        self._bytes: Counter[Pair] = Counter()
        """Of connections that are gone."""

    # --- links

    def add(self, pair: Pair, listen: tuple[str, int], target: tuple[str, int]) -> None:
        """For good; a pair may have several."""
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(listen)
            listener.listen(BACKLOG)
            listener.setblocking(False)
        except OSError:
            listener.close()
            raise
        self._connections.setdefault(pair, set())
        self._reactor.watch(listener.fileno(), READ, lambda *_: self._accept(pair, listener, target))

    def _accept(self, pair: Pair, listener: socket.socket, target: tuple[str, int]) -> None:
        try:
            near, _ = listener.accept()
        except OSError:
            return
        self._opened[pair] += 1
        connection = Connection(
            self._reactor,
            near,
            target,
            forth=self.condition(pair),
            back=self.condition(_back(pair)),
            draws=self._draws,
            gone=partial(self._gone, pair),
        )
        self._connections[pair].add(connection)
        connection.start()

    def _gone(self, pair: Pair, connection: Connection) -> None:
        self._connections[pair].discard(connection)
        self._bytes[pair] += connection.forth.bytes
        self._bytes[_back(pair)] += connection.back.bytes

    def condition(self, pair: Pair) -> Condition:
        return self._conditions.get(pair, CLEAR)

    def set(self, conditions: dict[Pair, Condition]) -> None:
        self._conditions |= conditions
        for pair, connections in self._connections.items():
            if pair in conditions or _back(pair) in conditions:
                for connection in tuple(connections):
                    connection.change(forth=self.condition(pair), back=self.condition(_back(pair)))

    def counts(self) -> list[dict[str, Any]]:
        found = []
        delivered = Counter(self._bytes)
        for pair, connections in self._connections.items():
            for connection in connections:
                delivered[pair] += connection.forth.bytes
                delivered[_back(pair)] += connection.back.bytes
        for pair, connections in sorted(self._connections.items()):
            found.append(
                {
                    "from": pair[0],
                    "to": pair[1],
                    "bytes": delivered[pair],
                    "opened": self._opened[pair],
                    "open": len(connections),
                }
            )
        return found

    # --- control

    def command(self, request: dict[str, Any]) -> dict[str, Any]:
        """Raises `ValueError`, `KeyError`, `TypeError`, `OSError`."""
        match request["op"]:
            case "add":
                self.add((request["from"], request["to"]), _address(request["listen"]), _address(request["target"]))
            case "set":
                self.set({(one, other): Condition.from_dict(found) for one, other, found in request["conditions"]})
            case "counts":
                return {"counts": self.counts()}
            case other:
                raise ValueError(f"op is {other!r}; expected add, set or counts")
        return {}


class Control:
    """One harness's connection to the proxy."""

    def __init__(self, reactor: Reactor, proxy: Proxy, connection: socket.socket) -> None:
        self._reactor, self._proxy, self._connection = reactor, proxy, connection
        self._in, self._out = b"", b""
        connection.setblocking(False)
        reactor.watch(connection.fileno(), READ, self._ready)

    def _ready(self, readable: bool, writable: bool) -> None:
        try:
            if readable:
                self._read()
            self._write()
        except BlockingIOError:
            pass
        except OSError:
            self._close()
        if self._connection.fileno() >= 0:
            self._reactor.watch(self._connection.fileno(), READ | (WRITE if self._out else 0), self._ready)

    def _read(self) -> None:
        data = self._connection.recv(LINE_BYTES_MAX)
        if not data or len(self._in) > LINE_BYTES_MAX:
            raise OSError("the harness is gone")
        *lines, self._in = (self._in + data).split(b"\n")
        for line in lines:
            self._out += json.dumps(self._answer(line)).encode() + b"\n"

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            return {"ok": True, **self._proxy.command(json.loads(line))}
        except (ValueError, KeyError, TypeError, OSError) as error:
            return {"ok": False, "error": f"{type(error).__name__}: {error}"}

    def _write(self) -> None:
        if self._out:
            self._out = self._out[self._connection.send(self._out) :]

    def _close(self) -> None:
        if self._connection.fileno() >= 0:
            self._reactor.forget(self._connection.fileno())
            self._connection.close()


def serve(control: str, seed: int) -> None:
    """Until the process is ended."""
    reactor = Reactor()
    proxy = Proxy(reactor, seed)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(control)
    listener.listen(BACKLOG)
    listener.setblocking(False)

    def accept() -> None:
        Control(reactor, proxy, listener.accept()[0])

    reactor.watch(listener.fileno(), READ, lambda *_: accept())
    print("ready", flush=True)
    reactor.run()


def _back(pair: Pair) -> Pair:
    return pair[1], pair[0]


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def main() -> None:
    parser = argparse.ArgumentParser(description="Forwards between the nodes of a lab's cluster, with faults.")
    parser.add_argument("--control", required=True, help="path of the Unix socket on which it is told what to do")
    parser.add_argument("--seed", type=int, default=0, help="of its draws")
    options = parser.parse_args()
    serve(options.control, options.seed)
