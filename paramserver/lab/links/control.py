"""The harness's end of the links, and what a network can suffer.

    links.between(1, 2).delay(20, jitter_ms=5)     # what 1 sends to 2
    links.both(1, 2).cut("black_hole")             # both ways
    links.isolate(3)                               # 3 and the others
    links.bridge(1, 2)                             # 1 and 2 see everybody else, not each other
    links.heal()

Owns the proxy's process, its ports and the addresses at which nodes dial each other. Invariants: a call returns when
the fault is in force; acts on one link add up until it is healed; what flows from 1 to 2 is meant by (1, 2), whoever
dialled. Nodes that come later have links from the start, up to SPARE_NODES of them. Must not know: what goes over the
links, plans of faults.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from paramserver.lab.lines import LineClient, SocketFolder
from paramserver.lab.links.conditions import CLEAR, CLOG, DROP, Condition
from paramserver.lab.ports import ReservedPorts
from paramserver.lab.processes import Child

READY_TIMEOUT_S = 30.0
Pair: TypeAlias = tuple[int, int]
Start: TypeAlias = Callable[[str, list[str]], Child]


@dataclass(frozen=True, slots=True)
class LinkCount:
    """Of one direction, since the proxy was started."""

    bytes: int
    """Delivered from the first to the second."""
    opened: int
    """Connections that the first dialled."""
    open: int


class Link:
    """One or more directions, treated alike."""

    def __init__(self, links: Links, pairs: Collection[Pair]) -> None:
        self._links = links
        self.pairs = tuple(pairs)

    def cut(self, mode: str = DROP) -> None:
        """drop, black_hole or reset: see `Condition.mode`."""
        self._change(mode=mode)

    def clog(self) -> None:
        """Nothing more is taken from the senders: back-pressure."""
        self._change(mode=CLOG)

    def delay(self, ms: float, jitter_ms: float = 0.0) -> None:
        self._change(delay_ms=ms, jitter_ms=jitter_ms)

    def loss(self, p: float) -> None:
        """A stand-in: see `conditions`."""
        self._change(loss=p)

    def duplicate(self, p: float) -> None:
        """A stand-in: see `conditions`."""
        self._change(duplicate=p)

    def rate_limit(self, bytes_per_s: float) -> None:
        self._change(bytes_per_s=bytes_per_s)

    def heal(self) -> None:
        self._links.apply(dict.fromkeys(self.pairs, Condition()))

    def _change(self, **what: Any) -> None:
        self._links.apply({pair: replace(self._links.condition(pair), **what) for pair in self.pairs})


class Links:
    """Of a cluster whose nodes listen at `addresses`, for each other at `peer_addresses` too; those of nodes that may
    come later included. `start` starts the process; `seed`: of the proxy's draws."""

    def __init__(
        self,
        addresses: Mapping[int, str],
        *,
        sockets: SocketFolder,
        start: Start,
        seed: int = 0,
        peer_addresses: Mapping[int, str] | None = None,
    ) -> None:
        self._addresses = dict(addresses)
        self._peer_addresses = dict(peer_addresses or {})
        self._start = start
        self._seed = seed
        self._sockets = sockets
        pairs = [(one, other) for one in addresses for other in addresses if one != other]
        self._ports = ReservedPorts(len(pairs))
        host = self._ports.host
        self._listens = {pair: f"{host}:{port}" for pair, port in zip(pairs, self._ports.numbers, strict=True)}
        among = [pair for pair in pairs if pair[1] in self._peer_addresses]
        self._peer_ports = ReservedPorts(len(among))
        self._peer_listens = {
            pair: f"{host}:{port}" for pair, port in zip(among, self._peer_ports.numbers, strict=True)
        }
        self._conditions: dict[Pair, Condition] = {}
        self._client: LineClient | None = None
        self.process: Child | None = None

    # --- the process

    def dial(self, node: int) -> dict[str, str]:
        """For `--dial` of that node: known address -> where it is dialled."""
        return {
            known[other]: listens[node, other]
            for known, listens in ((self._addresses, self._listens), (self._peer_addresses, self._peer_listens))
            for other in sorted(known)
            if other != node
        }

    def start(self) -> None:
        """Once; every link is clear."""
        if self.process is not None and self.process.running:
            return
        path = self._sockets.path("links")
        Path(path).unlink(missing_ok=True)
        line = [sys.executable, "-m", "paramserver.lab.links", "--control", path, "--seed", str(self._seed)]
        self.process = self._start("links", line)
        self.process.await_line("ready", READY_TIMEOUT_S)
        self._client = LineClient(path, "the proxy of the links")
        for listens, known in ((self._listens, self._addresses), (self._peer_listens, self._peer_addresses)):
            for (one, other), listen in listens.items():
                self.ask({"op": "add", "from": one, "to": other, "listen": listen, "target": known[other]})

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
        self._ports.close()
        self._peer_ports.close()

    # --- whom to treat

    @property
    def nodes(self) -> tuple[int, ...]:
        return tuple(sorted(self._addresses))

    def between(self, one: int, other: int) -> Link:
        """What flows from `one` to `other`."""
        return Link(self, self._known([(one, other)]))

    def both(self, one: int, other: int) -> Link:
        return Link(self, self._known([(one, other), (other, one)]))

    def of(self, node: int) -> Link:
        """All of a node, both ways."""
        return Link(self, self._known(_across([node], self._others([node]))))

    def from_(self, node: int) -> Link:
        """What a node sends."""
        return Link(self, self._known([(node, other) for other in self._others([node])]))

    def to(self, node: int) -> Link:
        """What a node gets."""
        return Link(self, self._known([(other, node) for other in self._others([node])]))

    def all(self) -> Link:
        return Link(self, tuple(self._listens))

    # --- partitions

    def isolate(self, node: int, mode: str = DROP) -> None:
        self.of(node).cut(mode)

    def one_way(self, node: int, *, hears: bool = True, mode: str = DROP) -> None:
        """The node hears the others, and is not heard; or the other way about."""
        (self.from_(node) if hears else self.to(node)).cut(mode)

    def bridge(self, one: int, other: int, mode: str = DROP) -> None:
        """Both see everybody else, and not each other."""
        self.both(one, other).cut(mode)

    def partition(self, *sides: Iterable[int], mode: str = DROP) -> None:
        """Who is named on one side does not see those on another. Who is not named sees everybody."""
        named = [tuple(side) for side in sides]
        pairs = [pair for at, side in enumerate(named) for across in named[at + 1 :] for pair in _across(side, across)]
        Link(self, self._known(pairs)).cut(mode)

    def heal(self) -> None:
        self.all().heal()

    # --- asking

    def condition(self, pair: Pair) -> Condition:
        return self._conditions.get(pair, Condition())

    @property
    def faulty(self) -> dict[Pair, Condition]:
        """What is wrong now."""
        return {pair: found for pair, found in self._conditions.items() if found.mode != CLEAR or found.shaped}

    def counts(self) -> dict[Pair, LinkCount]:
        found = self.ask({"op": "counts"})["counts"]
        return {(one["from"], one["to"]): LinkCount(one["bytes"], one["opened"], one["open"]) for one in found}

    def apply(self, conditions: Mapping[Pair, Condition]) -> None:
        """All at once. Back when they are in force."""
        self.ask({"op": "set", "conditions": [[*pair, found.as_dict()] for pair, found in conditions.items()]})
        self._conditions |= conditions

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._client is None:
            raise ValueError("the links are not started yet: start the cluster first")
        return self._client.ask(request)

    def _others(self, nodes: Collection[int]) -> list[int]:
        return [node for node in self._addresses if node not in nodes]

    def _known(self, pairs: list[Pair]) -> list[Pair]:
        odd = [pair for pair in pairs if pair not in self._listens]
        if odd:
            raise ValueError(f"no link {odd[0][0]} -> {odd[0][1]}; the nodes are {', '.join(map(str, self.nodes))}")
        return pairs


def _across(side: Iterable[int], other: Iterable[int]) -> list[Pair]:
    return [pair for one in side for two in other for pair in ((one, two), (two, one))]
