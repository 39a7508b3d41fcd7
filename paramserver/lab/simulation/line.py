"""A stream between a rank and a node: two ordered ways, broken as a whole.

Owns what is under way on it. Invariants: per direction in order; after a break nothing arrives any more; each end hears
of a break once, at a time of its own, the rank perhaps only by keepalive. Must not know: frames.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from consensus.core.interface import NodeId
from consensus.simulation.cluster import Cluster
from consensus.simulation.node import SimulatedNode
from consensus.simulation.profile import between
from consensus.simulation.schedule import MS

NOTICE_US = (50, 5 * MS)
KEEPALIVE_US = (10_000 * MS, 15_000 * MS)
"""When a client notices a connection that broke without a word (worker/channels.py)."""
LINES_KEPT = 512
"""Before those that broke are forgotten."""


class Line:
    def __init__(
        self,
        cluster: Cluster,
        node: SimulatedNode,
        source: random.Random,
        *,
        rank_told: Callable[[], None],
        server_told: Callable[[], None],
    ) -> None:
        self._cluster = cluster
        self.node = node
        self._random = source
        self._rank_told = rank_told
        self._server_told = server_told
        self._life = node.life
        self._free_us = {"up": 0, "down": 0}
        self.broken = not node.running

    def up(self, what: str, action: Callable[[], None]) -> None:
        """To the server; runs in its process."""
        self._travel("up", lambda: self.node.later(0, what, self._unless_broken(action)))

    def down(self, action: Callable[[], None]) -> None:
        """To the rank."""
        self._travel("down", action)

    def _unless_broken(self, action: Callable[[], None]) -> Callable[[], None]:
        return lambda: None if self.broken else action()

    def _travel(self, way: str, action: Callable[[], None]) -> None:
        if self.broken:
            return
        profile, scheduler = self._cluster.network.profile, self._cluster.scheduler
        if self._random.randrange(10_000) < profile.client_loss_permille:
            self.break_off()
            return
        at = max(self._free_us[way], scheduler.now_us + between(self._random, profile.delay_us))
        self._free_us[way] = at
        scheduler.at(at, self._unless_broken(action))

    def break_off(self, *, told: bool = True) -> None:
        """The connection is gone. `told`: the rank's kernel notices."""
        if self.broken:
            return
        self.broken = True
        scheduler = self._cluster.scheduler
        scheduler.after(between(self._random, NOTICE_US if told else KEEPALIVE_US), self._rank_told)
        if self.node.life == self._life:
            self.node.later(between(self._random, NOTICE_US), "", self._server_told)

    def close(self) -> None:
        """The rank hangs up."""
        if not self.broken:
            self.broken = True
            if self.node.life == self._life:
                self.node.later(between(self._random, NOTICE_US), "", self._server_told)

    def node_gone(self) -> None:
        if self.node.life == self._life:
            self.break_off(told=self._random.random() < 0.8)


class Lines:
    """All there are between ranks and nodes."""

    def __init__(self) -> None:
        self._lines: list[Line] = []

    def add(self, line: Line) -> None:
        if len(self._lines) > LINES_KEPT:
            self._forget()
        self._lines.append(line)

    def node_gone(self, node: NodeId) -> None:
        for line in self._lines:
            if line.node.node == node:
                line.node_gone()
        self._forget()

    def _forget(self) -> None:
        self._lines = [line for line in self._lines if not line.broken]
