"""What must hold whatever happens, checked from outside while it happens.

Owns what was ever said and applied. Three watchers:

* `Speech`: what a replica said of itself, it still knows in its next life: its term, its vote, what it acknowledged
  (HAZARDS 4, 7);
* `Witness`: every replica applies the same entries in the same order, none left out (state-machine safety, seen where
  it counts);
* `Lives`: the safety properties of Raft after every event, by `consensus.core.invariants`.

Invariants: a broken promise raises `Violated` at the event that broke it. Must not know: how faults are made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from consensus.core.errors import InvariantViolated
from consensus.core.interface import (
    AppendResponse,
    Entry,
    GroupId,
    HeartbeatResponse,
    NodeId,
    Payload,
    ReplicaId,
    Role,
    Status,
    VoteRequest,
    VoteResponse,
)
from consensus.core.invariants import Replica, SafetyChecker
from consensus.runtime.interface import StateMachine
from consensus.simulation.errors import Violated
from consensus.simulation.trace import Trace
from consensus.storage.interface import GroupAppend, RecoveredGroup
from consensus.transport.interface import Envelope


@dataclass(slots=True)
class _Said:
    term: int = 0
    votes: dict[int, ReplicaId] = field(default_factory=dict)
    acknowledged: tuple[int, int] = (0, 0)
    """(term, match index) of the last acknowledgement."""


class Speech:
    """Listens at the transport of every replica."""

    def __init__(self) -> None:
        self._said: dict[tuple[GroupId, ReplicaId], _Said] = {}

    def sent(self, envelopes: Sequence[Envelope]) -> None:
        for envelope in envelopes:
            message = envelope.message
            if isinstance(message, VoteRequest | VoteResponse) and message.pre:
                continue
            who = (envelope.group, message.sender)
            said = self._said.setdefault(who, _Said())
            if message.term < said.term:
                continue  # About an earlier term; what was said then is checked already.
            said.term = message.term
            if isinstance(message, VoteRequest):
                self._voted(who, said, message.term, message.sender)
            elif isinstance(message, VoteResponse) and message.granted:
                self._voted(who, said, message.term, message.to)
            elif isinstance(message, AppendResponse | HeartbeatResponse) and message.match_index:
                said.acknowledged = max(said.acknowledged, (message.term, message.match_index))

    def _voted(self, who: tuple[GroupId, ReplicaId], said: _Said, term: int, candidate: ReplicaId) -> None:
        known = said.votes.setdefault(term, candidate)
        if known != candidate:
            raise Violated(f"group {who[0]}, replica {who[1]}: voted for {known} and {candidate} in term {term}")

    def recovered(self, group: GroupId, replica: ReplicaId, found: RecoveredGroup | None) -> None:
        """A new life begins with `found`; None: it holds nothing of the group."""
        said = self._said.get((group, replica))
        if said is None:
            return
        term = found.hard_state.term if found else 0
        if term < said.term:
            raise Violated(f"group {group}, replica {replica}: spoke in term {said.term}, came back in term {term}")
        vote, promised = (found.hard_state.vote if found else 0), said.votes.get(term, 0)
        if promised and vote != promised:
            raise Violated(f"group {group}, replica {replica}: vote for {promised} in term {term} came back as {vote}")
        acknowledged_term, match_index = said.acknowledged
        last = max((entry.index for entry in found.entries), default=0) if found else 0
        if found and found.snapshot:
            last = max(last, found.snapshot.index)
        if acknowledged_term == term and last < match_index:
            raise Violated(
                f"group {group}, replica {replica}: acknowledged entry {match_index} in term {term}, came back with "
                f"entries up to {last}"
            )


class Witness:
    """One for a group: the chain of NORMAL entries that its replicas apply."""

    def __init__(self, group: GroupId) -> None:
        self.group = group
        self._applied: dict[int, tuple[int, int]] = {}
        """index -> (term, CRC)."""
        self._next: dict[int, int] = {}
        """index -> the next applied index; 0 stands before the first."""

    def applied(self, node: NodeId, previous: int, entry: Entry) -> None:
        """`previous`: the NORMAL entry that this replica applied, or its snapshot held, before."""
        if entry.index <= previous:
            raise Violated(f"group {self.group}, node {node}: applies entry {entry.index} after entry {previous}")
        known = self._applied.setdefault(entry.index, (entry.term, entry.crc))
        if known != (entry.term, entry.crc):
            raise Violated(
                f"group {self.group}, node {node}: applies (term, crc) {(entry.term, entry.crc)} at {entry.index}, "
                f"another replica applied {known}"
            )
        expected = self._next.setdefault(previous, entry.index)
        if expected != entry.index:
            raise Violated(
                f"group {self.group}, node {node}: applies entry {entry.index} after {previous}, another replica "
                f"applied {expected} there"
            )


class WitnessedMachine:
    """A state machine whose witness sees all it applies. Its snapshots begin with the index of the last entry."""

    _INDEX_BYTES = 8

    def __init__(self, inner: StateMachine, witness: Witness, node: NodeId) -> None:
        self.inner = inner
        self.last_index = 0
        self._witness = witness
        self._node = node

    def apply(self, entry: Entry) -> Any:
        self._witness.applied(self._node, self.last_index, entry)
        self.last_index = entry.index
        return self.inner.apply(entry)

    def snapshot(self) -> Iterator[Payload]:
        yield self.last_index.to_bytes(self._INDEX_BYTES, "little")
        yield from self.inner.snapshot()

    def restore(self, chunks: Iterator[memoryview]) -> None:
        head = b""
        rest = memoryview(b"")
        while len(head) < self._INDEX_BYTES:
            chunk = next(chunks)
            missing = self._INDEX_BYTES - len(head)
            head, rest = head + bytes(chunk[:missing]), memoryview(chunk)[missing:]
        self.last_index = int.from_bytes(head, "little")

        def remaining() -> Iterator[memoryview]:
            if len(rest):
                yield rest
            yield from chunks

        self.inner.restore(remaining())

    def size_bytes(self) -> int:
        return self._INDEX_BYTES + self.inner.size_bytes()


class DurableLog:
    """What the log of one replica holds durably, by the writes that were synced; not by anybody's word."""

    def __init__(self, found: RecoveredGroup | None) -> None:
        self._terms = {entry.index: entry.term for entry in found.entries} if found else {}
        self._snapshot = found.snapshot.index if found and found.snapshot else 0

    def synced(self, append: GroupAppend) -> None:
        meta = append.install
        if meta is not None:
            if self._terms.get(meta.index) != meta.term:
                self._terms.clear()
            self._snapshot = meta.index
        if append.entries:
            first = append.entries[0].index
            for index in [index for index in self._terms if index >= first]:
                del self._terms[index]
            self._terms.update((entry.index, entry.term) for entry in append.entries)

    def holds(self, index: int, term: int | None) -> bool:
        return index <= self._snapshot or (index in self._terms and self._terms[index] == term)


class Lives:
    """The safety properties of all groups, after every event, of the replicas that the event touched; and that what
    their bookkeeping says of disks is so: what is called flushed is durable, what a leader counts as matched is durable
    at the peer and the same there (HAZARDS 4, 5)."""

    def __init__(
        self,
        trace: Trace,
        *,
        elected: Callable[[GroupId], None],
        peer: Callable[[GroupId, ReplicaId], tuple[Replica, DurableLog] | None],
    ) -> None:
        self._trace = trace
        self._elected = elected
        self._peer = peer
        self._matched: dict[tuple[GroupId, ReplicaId, ReplicaId], tuple[int, int]] = {}
        """(group, leader, peer) -> (term, match index) that was looked at last."""
        self._checkers: dict[GroupId, SafetyChecker] = {}
        self._shown: dict[tuple[GroupId, ReplicaId], tuple[int, ...]] = {}
        self.leaders: dict[GroupId, set[int]] = {}
        """Terms that had a leader."""

    def look(self, group: GroupId, replica: Replica, durable: DurableLog) -> None:
        status = replica.status()
        key = (group, replica.replica)
        shown = self._shown.get(key)
        now = (status.term, status.role, status.leader, status.commit_index, status.last_index, status.applied_index)
        matched = sum(status.match.values())
        marks = (*now, status.flushed_index, status.snapshot_index, matched, id(replica))
        if marks == shown:
            return
        try:
            self._checkers.setdefault(group, SafetyChecker(group)).check((replica,))
        except InvariantViolated as error:
            raise Violated(str(error)) from error
        self._check_flushed(group, replica, status, durable)
        if status.role is Role.LEADER:
            self._check_matched(group, replica, status)
        if shown is None or now != shown[:6]:
            self._trace.add(f"g{group}r{replica.replica}", describe(status))
        if shown is None or shown[:2] != now[:2]:
            if status.role is Role.LEADER:
                self.leaders.setdefault(group, set()).add(status.term)
                self._elected(group)
        self._shown[key] = marks

    def _check_flushed(self, group: GroupId, replica: Replica, status: Status, durable: DurableLog) -> None:
        index = status.flushed_index
        entry = replica.entry(index)
        if index and entry is not None and not durable.holds(index, entry.term):
            raise Violated(
                f"group {group}, replica {replica.replica}: calls entry {index} of term {entry.term} flushed, its log "
                "does not hold it durably"
            )

    def _check_matched(self, group: GroupId, leader: Replica, status: Status) -> None:
        for replica, index in status.match.items():
            key = (group, leader.replica, replica)
            if not index or self._matched.get(key) == (status.term, index):
                continue
            self._matched[key] = (status.term, index)
            found = self._peer(group, replica)
            entry = leader.entry(index)
            if found is None or entry is None or found[0].status().term > status.term:
                continue
            peer, durable = found
            held = peer.entry(index)
            if not durable.holds(index, entry.term) or (held is not None and held.term != entry.term):
                raise Violated(
                    f"group {group}, leader {leader.replica} of term {status.term}: counts entry {index} of term "
                    f"{entry.term} as held by replica {replica}, which does not hold it durably"
                )


def describe(status: Status) -> str:
    return (
        f"term {status.term} {status.role.name.lower()}, leader {status.leader or 'unknown'}, log "
        f"{status.first_index}..{status.last_index} of t{status.last_term}, flushed {status.flushed_index}, "
        f"commit {status.commit_index}, applied {status.applied_index}"
    )
