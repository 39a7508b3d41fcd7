"""Which processes hold a connection to which, and when each end hears of its closing.

Owns the connection of each pair of nodes. Invariants: a pair has at most one connection at a time, numbered by epochs;
each end is told of closing and standing in this order, at times of its own, or, like a real stale notice, once too
often. Must not know: messages.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Protocol, TypeAlias

from consensus.core.interface import NodeId
from consensus.simulation.schedule import MS, Scheduler

Pair: TypeAlias = tuple[NodeId, NodeId]

NOTICE_US = (50, 5 * MS)
"""The kernel tells the other end that a process is gone."""
SLOW_NOTICE_US = (5 * MS, 150 * MS)
KEEPALIVE_US = (800 * MS, 4000 * MS)
"""A silent end is given up after this long."""
DIAL_US = (500, 120 * MS)
"""A process looks for its peers."""
REDIAL_US = (100 * MS, 500 * MS)


class World(Protocol):
    """What the connections depend on."""

    def alive(self, node: NodeId) -> bool: ...

    def passes(self, source: NodeId, target: NodeId) -> bool: ...

    def notice(self, node: NodeId, peer: NodeId, *, closed: bool) -> None: ...


class _Connection:
    __slots__ = ("believed_up", "epoch", "up")

    def __init__(self) -> None:
        self.up = False
        self.epoch = 0
        self.believed_up: set[NodeId] = set()
        """Ends that were told that it stands, and not yet that it closed."""


class Connections:
    def __init__(
        self, scheduler: Scheduler, source: random.Random, world: World, on_break: Callable[[Pair], None]
    ) -> None:
        self._scheduler = scheduler
        self._random = source
        self._world = world
        self._on_break = on_break
        self._pairs: dict[Pair, _Connection] = {}

    def epoch(self, a: NodeId, b: NodeId) -> int:
        """The number of the connection that stands; 0 when none does."""
        connection = self._of(a, b)
        return connection.epoch if connection.up else 0

    def started(self, node: NodeId, peers: list[NodeId]) -> None:
        """A process of that node runs; it and its peers dial."""
        for peer in peers:
            self._of(node, peer).believed_up.discard(node)
            self._scheduler.after(self._draw(DIAL_US), lambda peer=peer: self._dial(node, peer))  # type: ignore[misc]

    def gone(self, node: NodeId, peers: list[NodeId], *, silent: bool) -> None:
        """The process is gone. `silent`: with its machine, so that nobody is told until a keepalive notices."""
        for peer in peers:
            if self._of(node, peer).up:
                quiet = silent or not self._world.passes(node, peer)
                self._break(node, peer, ends=(peer,), quiet=quiet)

    def reset(self, a: NodeId, b: NodeId) -> None:
        """The connection closes although both ends live."""
        if self._of(a, b).up:
            self._break(a, b, ends=(a, b), quiet=False)
            self._scheduler.after(self._draw(REDIAL_US), lambda: self._dial(a, b))

    def cut(self, a: NodeId, b: NodeId) -> None:
        """Something between them does not pass any more; a keepalive may notice it."""
        connection = self._of(a, b)
        if not connection.up:
            return
        epoch = connection.epoch

        def keepalive() -> None:
            open_again = self._world.passes(a, b) and self._world.passes(b, a)
            if connection.up and connection.epoch == epoch and not open_again:
                self._break(a, b, ends=(a, b), quiet=False)
                self._scheduler.after(self._draw(REDIAL_US), lambda: self._dial(a, b))

        self._scheduler.after(self._draw(KEEPALIVE_US), keepalive)

    def _of(self, a: NodeId, b: NodeId) -> _Connection:
        pair = (a, b) if a < b else (b, a)
        connection = self._pairs.get(pair)
        if connection is None:
            connection = self._pairs[pair] = _Connection()
        return connection

    def _draw(self, span: tuple[int, int]) -> int:
        return self._random.randrange(span[0], span[1] + 1)

    def _break(self, a: NodeId, b: NodeId, *, ends: tuple[NodeId, ...], quiet: bool) -> None:
        connection = self._of(a, b)
        connection.up = False
        self._on_break((a, b))
        epoch = connection.epoch
        for end in ends:
            span = KEEPALIVE_US if quiet else SLOW_NOTICE_US if self._random.random() < 0.1 else NOTICE_US
            peer = b if end == a else a

            def notice(end: NodeId = end, peer: NodeId = peer) -> None:
                if connection.epoch == epoch and end in connection.believed_up:
                    connection.believed_up.remove(end)
                    self._world.notice(end, peer, closed=True)

            self._scheduler.after(self._draw(span), notice)

    def _dial(self, a: NodeId, b: NodeId) -> None:
        connection = self._of(a, b)
        if connection.up or not self._world.alive(a) or not self._world.alive(b):
            return
        if not (self._world.passes(a, b) and self._world.passes(b, a)):
            self._scheduler.after(self._draw(REDIAL_US), lambda: self._dial(a, b))
            return
        connection.up = True
        connection.epoch += 1
        epoch = connection.epoch
        for end, peer in ((a, b), (b, a)):
            if end in connection.believed_up:
                connection.believed_up.remove(end)
                self._world.notice(end, peer, closed=True)

            def stands(end: NodeId = end, peer: NodeId = peer) -> None:
                if connection.up and connection.epoch == epoch:
                    connection.believed_up.add(end)
                    self._world.notice(end, peer, closed=False)

            self._scheduler.after(self._draw(NOTICE_US), stands)
