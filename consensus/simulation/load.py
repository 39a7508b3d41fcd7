"""The generic load of a simulated cluster: ledgers, and clients of them.

Owns the clients of all groups and their histories. Must not know: how a client goes about it, faults.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from consensus.core.interface import GroupId, NodeId
from consensus.runtime.interface import Applied, GroupListener, StateMachine
from consensus.simulation.clients import Client
from consensus.simulation.cluster import Cluster
from consensus.simulation.errors import Violated
from consensus.simulation.history import History
from consensus.simulation.ledger import Ledger
from consensus.simulation.node import SimulatedNode
from consensus.simulation.schedule import MS, stream


class Counting:
    """A `GroupListener` that only counts."""

    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts

    def leading(self, term: int) -> None:
        self._counts["leaders that served"] += 1

    def deposed(self, term: int) -> None:
        return None

    def leader_changed(self, leader: int, term: int) -> None:
        return None

    def applied(self, batch: Sequence[Applied]) -> None:
        self._counts["applied"] += len(batch)

    def restored(self, index: int) -> None:
        self._counts["restored from snapshots"] += 1

    def handing_over(self, to: int) -> None:
        self._counts["hand-overs heard of"] += 1

    def drained(self) -> bool:
        return True

    def note(self) -> bytes:
        return b""

    def noted(self, replica: int, note: bytes) -> None:
        return None


class LedgerLoad:
    """`Application`: a ledger in every group, `clients` clients each, `commands` commands a client after healing."""

    def __init__(self, *, seed: int, clients: int, commands: int) -> None:
        self._seed = seed
        self._clients_a_group = clients
        self._commands_a_client = commands
        self._clients: list[Client] = []
        self._histories: dict[GroupId, History] = {}
        self._number = 0

    # --- Application ------------------------------------------------------------------------------------------------

    def machine(self, node: NodeId, group: GroupId) -> tuple[StateMachine, GroupListener]:
        return Ledger(), Counting(self.cluster.counts)

    def begin(self, cluster: Cluster) -> None:
        self.cluster = cluster
        for spec in cluster.groups:
            history = self._histories[spec.group] = History(spec.group)
            for _ in range(self._clients_a_group):
                source = stream(self._seed, f"client {len(self._clients) + 1}")
                client = Client(spec.group, self, history, source, self._commands_a_client)
                self._clients.append(client)
                cluster.scheduler.after(client.number * 7 * MS, client.next_command)

    def running(self, node: SimulatedNode) -> None:
        return None

    def stopped(self, node: NodeId) -> None:
        return None

    def crash_clients(self, source: random.Random) -> None:
        for client in self._clients:
            if source.random() < 0.4:
                client.crash()

    def heal(self) -> None:
        for client in self._clients:
            client.heal()

    def done(self) -> bool:
        return all(client.done for client in self._clients)

    def waits_for(self) -> str:
        waiting = [client.number for client in self._clients if not client.done]
        return f"clients {waiting} have commands left"

    def digest(self, machine: StateMachine) -> bytes:
        return self._ledger(machine).digest()

    def acknowledged(self) -> int:
        return sum(history.acknowledged for history in self._histories.values())

    def operations_checked(self) -> int:
        return sum(history.operations for history in self._histories.values())

    def check(self) -> None:
        for group, history in self._histories.items():
            history.check(self._ledger(self.cluster.example(group)))
            self.cluster.counts["histories undecided"] += history.undecided

    # --- for clients ------------------------------------------------------------------------------------------------

    def nodes_of(self, group: GroupId) -> list[NodeId]:
        return self.cluster.roster.nodes_of(group)

    def node_of(self, group: GroupId, replica: int) -> NodeId:
        return self.cluster.roster.node_of(group, replica)

    def next_number(self) -> int:
        self._number += 1
        return self._number

    @staticmethod
    def _ledger(machine: StateMachine) -> Ledger:
        if not isinstance(machine, Ledger):
            raise Violated(f"not a ledger: {machine!r}")
        return machine
