"""Stands in for the catalogue: creates, fills and opens the shards, and sets views.

Owns the commands that each data group has yet to confirm, in order. Invariants: every command is repeated until a
replica says what became of it (they are idempotent); a rank is granted a view when all groups hold it, with the lowest
version that any of them named (RULES S9). Must not know: streams, steps.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from consensus.core.interface import GroupId, NodeId
from consensus.runtime.interface import Committed, Outcome, Refused
from consensus.simulation.cluster import Cluster
from consensus.simulation.errors import Violated
from consensus.simulation.profile import between
from consensus.simulation.schedule import MS, stream
from paramserver.shard.commands import Command, InitialBlock, OpenShard, SetView, encode
from paramserver.shard.results import Answer, NotTaken, Stored, Why
from paramserver.wire.checksum import crc32c
from paramserver.wire.protos import View

TIMEOUT_MS = (100, 500)
PAUSE_MS = (5, 50)


@dataclass(frozen=True, slots=True)
class Order:
    command: Command
    done: Callable[[Answer | Stored | NotTaken], None]


class GroupOrders:
    """Commands of one group, one after the other."""

    def __init__(self, cluster: Cluster, group: GroupId, nodes: Sequence[NodeId], source: random.Random) -> None:
        self._cluster = cluster
        self._group = group
        self._nodes = list(nodes)
        self._random = source
        self._orders: deque[Order] = deque()
        self._attempt = 0
        self._target: NodeId = 0

    @property
    def idle(self) -> bool:
        return not self._orders

    def add(self, order: Order) -> None:
        self._orders.append(order)
        if len(self._orders) == 1:
            self._try()

    def _try(self) -> None:
        order = self._orders[0]
        self._attempt += 1
        attempt, scheduler = self._attempt, self._cluster.scheduler
        node = self._cluster.nodes[self._target or self._random.choice(self._nodes)]
        self._target = 0
        payload = encode(order.command)

        def propose() -> None:
            handle = node.handles.get(self._group)
            if handle is not None:
                handle.propose(payload, crc32c(payload), lambda outcome: self._travel(lambda: answered(outcome)))

        def answered(outcome: Outcome) -> None:
            if attempt != self._attempt:
                return
            if isinstance(outcome, Committed):
                self._attempt += 1
                self._orders.popleft()
                order.done(outcome.result)
                if self._orders:
                    self._try()
                return
            self._target = outcome.leader if isinstance(outcome, Refused) and self._random.randrange(4) else 0
            again()

        def again() -> None:
            if attempt == self._attempt:
                self._attempt += 1
                scheduler.after(between(self._random, PAUSE_MS) * MS, self._try)

        what = f"takes {type(order.command).__name__} of group {self._group}"
        self._travel(lambda: node.later(0, what, propose))
        scheduler.after(between(self._random, TIMEOUT_MS) * MS, again)

    def _travel(self, action: Callable[[], None]) -> None:
        profile = self._cluster.network.profile
        if self._random.randrange(1000) >= profile.client_loss_permille:
            self._cluster.scheduler.after(between(self._random, profile.delay_us), action)


class Director:
    def __init__(self, cluster: Cluster, seed: int, ranks: int) -> None:
        self._cluster = cluster
        self._orders = {
            spec.group: GroupOrders(
                cluster, spec.group, list(spec.nodes.values()), stream(seed, f"director {spec.group}")
            )
            for spec in cluster.groups
        }
        self._leases = [1] * ranks
        self._number = 1
        self.is_open = False

    @property
    def idle(self) -> bool:
        return self.is_open and all(orders.idle for orders in self._orders.values())

    def create(
        self,
        create: dict[GroupId, Command],
        initial: dict[GroupId, list[InitialBlock]],
        opening: OpenShard,
        opened: Callable[[], None],
    ) -> None:
        """Have every group create its shard, take its values, and open it with the first view."""
        view = SetView(model=opening.model, generation=opening.generation, view=self._view())
        left = len(self._orders)

        def finished(answer: Answer | Stored | NotTaken) -> None:
            nonlocal left
            self._expect_ok(answer)
            left -= 1
            if not left:
                self.is_open = True
                opened()

        for group, orders in self._orders.items():
            orders.add(Order(create[group], self._expect_ok))
            for block in initial[group]:
                orders.add(Order(block, self._expect_stored))
            orders.add(Order(view, self._expect_ok))
            orders.add(Order(opening, finished))

    def claim(self, model: int, generation: int, rank: int, granted: Callable[[int, int, int], None]) -> None:
        """Give a rank that came back its place: `granted(view, lease epoch, lowest version)`."""
        self._number += 1
        self._leases[rank] += 1
        number, lease = self._number, self._leases[rank]
        lowest: list[int] = []

        def confirmed(answer: Answer | Stored | NotTaken) -> None:
            if not isinstance(answer, Answer):
                raise Violated(f"a view was answered by {answer}")
            if not answer.ok and answer.view <= number:
                raise Violated(f"view {number} was refused: {answer}")
            lowest.append(answer.lowest_version)
            if len(lowest) == len(self._orders):
                self._cluster.trace.add("director", f"grants rank {rank} view {number}, step {min(lowest)}")
                granted(number, lease, min(lowest))

        command = SetView(model=model, generation=generation, view=self._view())
        for orders in self._orders.values():
            orders.add(Order(command, confirmed))

    def _view(self) -> View:
        return View(self._number, 0, tuple(self._leases))

    @staticmethod
    def _expect_ok(answer: Answer | Stored | NotTaken) -> None:
        if not isinstance(answer, Answer) or not answer.ok:
            raise Violated(f"a shard was not created or opened: {answer}")

    @staticmethod
    def _expect_stored(answer: Answer | Stored | NotTaken) -> None:
        late = isinstance(answer, NotTaken) and answer.why is Why.ALREADY_OPEN
        if not isinstance(answer, Stored) and not late:
            raise Violated(f"initial values were not stored: {answer}")
