"""Clients of ledgers, and what they were promised.

Owns the generic load: clients that append lines, one after the other, ask again under the same number when they don't
know the outcome, and follow redirects. Invariants checked at the end: every acknowledged line stands where its
acknowledgement said, no line stands twice, and what was acknowledged before something was asked for stands before it
(the history is linearizable). Must not know: replication.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from consensus.core.interface import GroupId, NodeId
from consensus.runtime.interface import Applied, Committed, GroupListener, Outcome, Refused, StateMachine
from consensus.simulation.cluster import Cluster
from consensus.simulation.errors import Violated
from consensus.simulation.ledger import Ledger, Place, encode
from consensus.simulation.node import SimulatedNode
from consensus.simulation.profile import between
from consensus.simulation.schedule import MS, stream
from consensus.storage.checksum import crc32c

TIMEOUT_MS = (100, 600)
PAUSE_MS = (5, 40)
"""After a refusal."""
THINK_MS = (0, 20)


@dataclass(frozen=True, slots=True)
class Line:
    """An acknowledged line. Times in microseconds of virtual time."""

    client: int
    sequence: int
    position: int
    asked_us: int
    acknowledged_us: int


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

    def note(self) -> bytes:
        return b""

    def noted(self, replica: int, note: bytes) -> None:
        return None


class Client:
    def __init__(self, number: int, group: GroupId, load: LedgerLoad, source: random.Random, lines: int) -> None:
        self.number = number
        self.group = group
        self._load = load
        self._random = source
        self._lines_after = lines
        self._left: int | None = None
        """Lines still to append; None: as many as there is time for."""
        self._sequence = 0
        self._attempt = 0
        self._asked_us = 0
        self._command = b""
        """What is being asked for; empty between lines."""
        self._target: NodeId = 0
        self._name = f"client {number}"

    @property
    def done(self) -> bool:
        return self._left is not None and self._left <= 0

    def heal(self) -> None:
        """The line under way, and some more: that there is progress is to be shown."""
        self._left = self._lines_after

    def next_line(self) -> None:
        if self.done:
            return
        self._sequence += 1
        size = self._random.choice((0, 20, 200, 3000))
        self._command = encode(self.number, self._sequence, self._random.randbytes(size))
        self._asked_us = self._load.cluster.scheduler.now_us
        self._ask()

    def _ask(self) -> None:
        cluster = self._load.cluster
        self._attempt += 1
        attempt = self._attempt
        targets = self._load.nodes_of(self.group)
        target = self._target or self._random.choice(targets)
        self._target = 0
        cluster.trace.add(self._name, f"asks n{target} for line {self._sequence} of group {self.group}")
        self._travel(lambda: self._arrive(target, attempt))
        cluster.scheduler.after(between(self._random, TIMEOUT_MS) * MS, lambda: self._again(attempt, "no answer"))

    def _travel(self, arrive: Callable[[], None]) -> None:
        """Over the client's own link, which may lose it."""
        profile = self._load.cluster.network.profile
        if self._random.randrange(1000) >= profile.client_loss_permille:
            self._load.cluster.scheduler.after(between(self._random, profile.delay_us), arrive)

    def _arrive(self, target: NodeId, attempt: int) -> None:
        node = self._load.cluster.nodes[target]
        sequence, command = self._sequence, self._command
        if attempt != self._attempt or not command:
            return

        def propose() -> None:
            handle = node.handles.get(self.group)
            if handle is not None:
                handle.propose(
                    command,
                    crc32c(command),
                    lambda outcome: self._travel(lambda: self._answered(attempt, sequence, outcome)),
                )

        node.later(0, f"takes line {sequence} of {self._name}", propose)

    def _answered(self, attempt: int, sequence: int, outcome: Outcome) -> None:
        if isinstance(outcome, Committed) and isinstance(outcome.result, Place):
            # Late answers count too: they are promises.
            self._load.promised(self.group, self.number, sequence, outcome.result, self._asked_us, self._name)
            if sequence == self._sequence and self._command:
                self._attempt += 1
                self._command = b""
                if self._left is not None:
                    self._left -= 1
                pause = between(self._random, THINK_MS) * MS
                self._load.cluster.scheduler.after(pause, self.next_line)
            return
        if attempt == self._attempt:
            if isinstance(outcome, Refused) and outcome.leader and self._random.randrange(4):
                self._target = self._load.node_of(self.group, outcome.leader)
            self._again(attempt, type(outcome).__name__)

    def _again(self, attempt: int, why: str) -> None:
        if attempt != self._attempt:
            return
        self._attempt += 1
        self._load.cluster.counts[f"client: {why}"] += 1
        self._load.cluster.scheduler.after(between(self._random, PAUSE_MS) * MS, self._ask)


class LedgerLoad:
    """`Application`: a ledger in every group, `clients` clients each, `lines` lines a client after healing."""

    def __init__(self, *, seed: int, clients: int, lines: int) -> None:
        self._seed = seed
        self._clients_a_group = clients
        self._lines_a_client = lines
        self._clients: list[Client] = []
        self._promises: dict[tuple[GroupId, int, int], Line] = {}

    # --- Application ------------------------------------------------------------------------------------------------

    def machine(self, node: NodeId, group: GroupId) -> tuple[StateMachine, GroupListener]:
        return Ledger(), Counting(self.cluster.counts)

    def begin(self, cluster: Cluster) -> None:
        self.cluster = cluster
        for spec in cluster.groups:
            for _ in range(self._clients_a_group):
                number = len(self._clients) + 1
                client = Client(number, spec.group, self, stream(self._seed, f"client {number}"), self._lines_a_client)
                self._clients.append(client)
                cluster.scheduler.after(number * 7 * MS, client.next_line)

    def running(self, node: SimulatedNode) -> None:
        return None

    def stopped(self, node: NodeId) -> None:
        return None

    def heal(self) -> None:
        for client in self._clients:
            client.heal()

    def done(self) -> bool:
        return all(client.done for client in self._clients)

    def waits_for(self) -> str:
        waiting = [client.number for client in self._clients if not client.done]
        return f"clients {waiting} have lines left"

    def digest(self, machine: StateMachine) -> bytes:
        return self._ledger(machine).digest()

    def acknowledged(self) -> int:
        return len(self._promises)

    def check(self) -> None:
        for spec in self.cluster.groups:
            node = self.cluster.nodes[next(iter(spec.nodes.values()))]
            self._check_group(spec.group, self._ledger(node.machines[spec.group].inner))

    # --- for clients ------------------------------------------------------------------------------------------------

    def nodes_of(self, group: GroupId) -> list[NodeId]:
        return next(list(spec.nodes.values()) for spec in self.cluster.groups if spec.group == group)

    def node_of(self, group: GroupId, replica: int) -> NodeId:
        return next(spec.nodes.get(replica, 0) for spec in self.cluster.groups if spec.group == group)

    def promised(self, group: GroupId, client: int, sequence: int, place: Place, asked_us: int, name: str) -> None:
        now_us = self.cluster.scheduler.now_us
        self.cluster.trace.add(name, f"hears: line {sequence} stands at {place.position} of group {group}")
        line = Line(client, sequence, place.position, asked_us, now_us)
        known = self._promises.setdefault((group, client, sequence), line)
        if known.position != line.position:
            raise Violated(f"group {group}: {line} was promised another position before: {known}")

    # --- promises ---------------------------------------------------------------------------------------------------

    @staticmethod
    def _ledger(machine: StateMachine) -> Ledger:
        if not isinstance(machine, Ledger):
            raise Violated(f"not a ledger: {machine!r}")
        return machine

    def _check_group(self, group: GroupId, ledger: Ledger) -> None:
        if len(set(ledger.lines)) != len(ledger.lines):
            twice = sorted({line for line in ledger.lines if ledger.lines.count(line) > 1})
            raise Violated(f"group {group}: lines stand twice: {twice}")
        promises = [line for (of, _, _), line in self._promises.items() if of == group]
        for line in promises:
            found = ledger.lines[line.position] if line.position < len(ledger.lines) else None
            if found != (line.client, line.sequence):
                raise Violated(f"group {group}: {line} was acknowledged, but {found} stands there")
        self._check_order(group, promises)

    @staticmethod
    def _check_order(group: GroupId, promises: list[Line]) -> None:
        """What was acknowledged before another line was asked for stands before it."""
        by_end = sorted(promises, key=lambda line: line.acknowledged_us)
        ended, highest = 0, -1
        for line in sorted(promises, key=lambda line: line.asked_us):
            while by_end[ended].acknowledged_us < line.asked_us:
                highest = max(highest, by_end[ended].position)
                ended += 1
            if line.position < highest:
                raise Violated(f"group {group}: {line} stands before one at {highest} acknowledged earlier")
