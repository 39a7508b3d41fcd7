"""Clients of ledgers: they ask, lose patience, ask again, follow redirects, crash.

Owns the course of one client, and what it tells the group's history. Invariants: a client has one command under way at
a time, and repeats it under the same number until it knows the outcome; a crashed one is never heard of again, and
another takes its place. Must not know: replication, whether answers are right.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Protocol

from consensus.core.interface import GroupId, NodeId
from consensus.runtime.interface import Committed, Outcome, ReadOutcome, Refused
from consensus.simulation.cluster import Cluster
from consensus.simulation.errors import Violated
from consensus.simulation.history import History, Line
from consensus.simulation.ledger import Ledger, Op, Place, encode
from consensus.simulation.linearizability import Operation
from consensus.simulation.node import SimulatedNode
from consensus.simulation.profile import between
from consensus.simulation.schedule import MS
from consensus.storage.checksum import crc32c

TIMEOUT_MS = (100, 600)
QUICK_TRIES = 3
"""For a read; what comes after waits longer and longer."""
PAUSE_MS = (5, 40)
"""After a refusal."""
THINK_MS = (0, 20)
OPS = (Op.LINE, Op.LINE, Op.WRITE, Op.ADD, Op.READ, Op.READ)


class Office(Protocol):
    """Who employs the clients."""

    cluster: Cluster

    def nodes_of(self, group: GroupId) -> list[NodeId]: ...

    def node_of(self, group: GroupId, replica: int) -> NodeId: ...

    def next_number(self) -> int: ...


class Client:
    def __init__(
        self, group: GroupId, office: Office, history: History, source: random.Random, commands_after: int
    ) -> None:
        self.group = group
        self.number = office.next_number()
        self._office = office
        self._history = history
        self._random = source
        self._commands_after = commands_after
        self._left: int | None = None
        """Commands still to give; None: as many as there is time for."""
        self._sequence = 0
        self._attempt = 0
        self._asked_us = 0
        self._gave_up = 0
        """How often on this read. It has to begin again each time, and a round trip may take longer than it waited; an
        update goes on whether or not somebody waits for it."""
        self._command = b""
        """What is being asked for; empty between commands."""
        self._op = Op.LINE
        self._value = 0
        self._target: NodeId = 0
        self._resting = False

    @property
    def name(self) -> str:
        return f"client {self.number}"

    @property
    def done(self) -> bool:
        return self._left is not None and self._left <= 0

    def heal(self) -> None:
        """The command under way, and some more: that there is progress is to be shown."""
        self._left = self._commands_after
        if self._resting:
            self._resting = False
            self.next_command()

    def crash(self) -> None:
        """What it asked for stays unknown for ever. Somebody else goes on in its place."""
        if self._command:
            self._record(None, 0)
        self._office.cluster.trace.add(self.name, "crashes")
        self.number = self._office.next_number()
        self._sequence = 0
        self._command = b""
        self._attempt += 1
        if not self._resting:
            self._later(between(self._random, PAUSE_MS), self.next_command)

    def next_command(self) -> None:
        if self._command:
            return
        if self.done:
            self._resting = True
            return
        self._gave_up = 0
        self._op = self._random.choice(OPS)
        if self._op is Op.READ:
            self._command = b"a read"
        else:
            self._sequence += 1
            self._value = self._random.randrange(1, 1 << 40)
            filler = self._random.randbytes(self._random.choice((0, 20, 200, 3000)))
            self._command = encode(self.number, self._sequence, filler, self._op, self._value)
        self._asked_us = self._office.cluster.scheduler.now_us
        self._ask()

    def _ask(self) -> None:
        cluster = self._office.cluster
        self._attempt += 1
        attempt = self._attempt
        target = self._target or self._random.choice(self._office.nodes_of(self.group))
        self._target = 0
        what = self._op.name.lower()
        if self._op is Op.READ:
            self._asked_us = cluster.scheduler.now_us
        cluster.trace.add(self.name, f"asks n{target} of group {self.group} for {what} {self._sequence}")
        self._travel(lambda: self._arrive(target, attempt))
        patience = max(1, self._gave_up - QUICK_TRIES)
        self._later(patience * between(self._random, TIMEOUT_MS), lambda: self._unanswered(attempt))

    def _later(self, delay_ms: int, action: Callable[[], None]) -> None:
        self._office.cluster.scheduler.after(delay_ms * MS, action)

    def _travel(self, arrive: Callable[[], None]) -> None:
        """Over the client's own link, which may lose it."""
        profile = self._office.cluster.network.profile
        if self._random.randrange(1000) >= profile.client_loss_permille:
            self._office.cluster.scheduler.after(between(self._random, profile.delay_us), arrive)

    def _arrive(self, target: NodeId, attempt: int) -> None:
        node = self._office.cluster.nodes[target]
        client, sequence, command = self.number, self._sequence, self._command
        if attempt != self._attempt or not command:
            return
        if self._op is Op.READ:
            node.later(0, f"takes a read of {self.name}", lambda: self._read_at(node, attempt))
            return

        def answer(outcome: Outcome) -> None:
            self._travel(lambda: self._answered(attempt, client, sequence, outcome))

        def propose() -> None:
            handle = node.handles.get(self.group)
            if handle is not None:
                handle.propose(
                    command, crc32c(command), self._office.cluster.requests.begin(target, "proposal", answer)
                )

        node.later(0, f"takes {sequence} of {self.name}", propose)

    def _read_at(self, node: SimulatedNode, attempt: int) -> None:
        """Ask this replica; what it answers with is its state at the moment when it says that it may."""
        handle, client, asked_us = node.handles.get(self.group), self.number, self._asked_us
        if handle is None:
            return
        committed = self._office.cluster.committed(self.group)

        def may_answer(outcome: ReadOutcome) -> None:
            if isinstance(outcome, Refused):
                self._travel(lambda: self._refused(attempt, outcome))
                return
            machine = node.machines[self.group].inner
            if outcome.index < committed or outcome.age_ms < 0:
                raise Violated(
                    f"group {self.group}, node {node.node}: a read that was asked for when {committed} entries were "
                    f"committed may be answered at {outcome}"
                )
            if isinstance(machine, Ledger):
                value = (machine.register, machine.counter)
                self._travel(lambda: self._heard(attempt, client, asked_us, value))

        handle.read_index(self._office.cluster.requests.begin(node.node, "read", may_answer))

    def _heard(self, attempt: int, client: int, asked_us: int, value: tuple[int, int]) -> None:
        cluster = self._office.cluster
        cluster.trace.add(self.name, f"reads {value} of group {self.group}")
        # Late answers say as much as others.
        self._history.read(*value, asked_us, cluster.scheduler.now_us, f"client {client}")
        if attempt == self._attempt and client == self.number:
            self._finished()

    def _answered(self, attempt: int, client: int, sequence: int, outcome: Outcome) -> None:
        if client != self.number:
            return  # The one who asked is gone.
        if isinstance(outcome, Committed) and isinstance(outcome.result, Place):
            # Late answers count too: they are promises.
            self._promised(sequence, outcome.result)
            return
        if isinstance(outcome, Refused):
            self._refused(attempt, outcome)
        elif attempt == self._attempt:
            self._again(attempt, type(outcome).__name__)

    def _refused(self, attempt: int, outcome: Refused) -> None:
        if attempt == self._attempt:
            if outcome.leader and self._random.randrange(4):
                self._target = self._office.node_of(self.group, outcome.leader)
            self._again(attempt, type(outcome).__name__)

    def _promised(self, sequence: int, place: Place) -> None:
        cluster = self._office.cluster
        cluster.trace.add(self.name, f"hears: {sequence} stands at {place.position} of group {self.group}")
        now_us = cluster.scheduler.now_us
        self._history.promised(Line(self.number, sequence, place.position, self._asked_us, now_us))
        if sequence != self._sequence or not self._command or self._op is Op.READ:
            return
        self._record(now_us, place.value)
        self._finished()

    def _finished(self) -> None:
        self._attempt += 1
        self._command = b""
        if self._left is not None:
            self._left -= 1
        self._later(between(self._random, THINK_MS), self.next_command)

    def _record(self, answered_us: int | None, value: int) -> None:
        if self._op is Op.WRITE:
            done = Operation("write", self._value, None, self._asked_us, answered_us, self.name)
        elif self._op is Op.ADD:
            done = Operation("add", self._value, value, self._asked_us, answered_us, self.name)
        else:
            return
        if answered_us is None:
            self._history.unknown(self.number, self._sequence, done)
        else:
            self._history.change(done)

    def _unanswered(self, attempt: int) -> None:
        if attempt == self._attempt:
            self._gave_up += self._op is Op.READ
            self._again(attempt, "no answer")

    def _again(self, attempt: int, why: str) -> None:
        if attempt != self._attempt:
            return
        self._attempt += 1
        attempt = self._attempt
        self._office.cluster.counts[f"client: {why}"] += 1
        self._later(between(self._random, PAUSE_MS), lambda: self._ask_unless(attempt))

    def _ask_unless(self, attempt: int) -> None:
        if attempt == self._attempt:
            self._ask()
