"""The safety properties of all groups, after every event, and what disks really hold.

Owns two watchers: `DurableLog`, what a replica's log holds by the writes that were synced, not by anybody's word; and
`Lives`, which looks at the replicas that an event touched:

* the safety properties of Raft (`consensus.core.invariants`);
* bookkeeping is true: what is called flushed is durable, what a leader counts as matched is durable at the peer and the
  same there (HAZARDS 4, 5);
* what is committed is durable on a quorum of the leader's configuration when it is first seen committed;
* quorums of a configuration and of the one before it in the log always meet (HAZARDS 18, 19);
* the configuration in force is the last one in the log, committed or not (HAZARDS 19), and a leader appends none before
  an entry of its own term is committed (HAZARDS 18).

Invariants: a broken promise raises `Violated` at the event that broke it; a replica whose marks did not change costs
one tuple. Must not know: how faults are made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from consensus.core.errors import InvariantViolated
from consensus.core.interface import Configuration, Entry, EntryKind, GroupId, ReplicaId, Role, Status
from consensus.core.invariants import SafetyChecker
from consensus.simulation.errors import Violated
from consensus.simulation.quorums import is_quorum, quorums_meet
from consensus.simulation.trace import Trace
from consensus.storage.interface import GroupAppend, RecoveredGroup

SHOWN = 7
"""So many of a core's marks go into the trace when they change."""


class Replica(Protocol):
    """What is looked at: a core, by shape."""

    @property
    def replica(self) -> ReplicaId: ...

    def marks(self) -> tuple[object, ...]: ...

    def status(self) -> Status: ...

    def entry(self, index: int) -> Entry | None: ...


class DurableLog:
    """What the log of one replica holds durably, by the writes that were synced; not by anybody's word."""

    def __init__(self, found: RecoveredGroup | None) -> None:
        self._terms = {entry.index: entry.term for entry in found.entries} if found else {}
        snapshot = found.snapshot if found else None
        self._snapshot, self._snapshot_term = (snapshot.index, snapshot.term) if snapshot else (0, 0)

    def synced(self, append: GroupAppend) -> None:
        meta = append.install
        if append.forget:
            self._terms.clear()
            self._snapshot = 0
        if meta is not None:
            # The boundary of the snapshot before counts as held: one of the same index may be written again.
            again = (self._snapshot, self._snapshot_term) == (meta.index, meta.term)
            if not again and self._terms.get(meta.index) != meta.term:
                self._terms.clear()
            self._snapshot, self._snapshot_term = meta.index, meta.term
        if append.entries:
            first = append.entries[0].index
            index = first
            while self._terms.pop(index, None) is not None:
                index += 1
            self._terms.update((entry.index, entry.term) for entry in append.entries)

    def holds(self, index: int, term: int | None) -> bool:
        return index <= self._snapshot or self._terms.get(index) == term


class Lives:
    def __init__(
        self,
        trace: Trace,
        *,
        elected: Callable[[GroupId], None],
        peer: Callable[[GroupId, ReplicaId], Replica | None],
        durable: Callable[[GroupId, ReplicaId], DurableLog | None],
        configured: Callable[[GroupId, int, int, Configuration, int], None],
        overruled: Callable[[GroupId, Callable[[int, int], bool]], None],
    ) -> None:
        """`peer`: the core of a replica that runs. `durable`: what the disk of a replica holds, also of one that is
        down; None for one that counts for nothing now (forgetful, damaged). `configured`: some replica has a
        configuration in force that none had before: index and term of its entry, it, and what is known committed.
        `overruled`: more was committed, and a function that says of an entry whether it never will be."""
        self._trace = trace
        self._elected = elected
        self._peer = peer
        self._durable = durable
        self._configured = configured
        self._overruled = overruled
        self._matched: dict[tuple[GroupId, ReplicaId, ReplicaId], tuple[int, int]] = {}
        """(group, leader, peer) -> (term, match index) that was looked at last."""
        self._scanned: dict[tuple[GroupId, ReplicaId], tuple[Replica, int]] = {}
        """Up to which index a log was searched for configurations."""
        self._checkers: dict[GroupId, SafetyChecker] = {}
        self._shown: dict[tuple[GroupId, ReplicaId], tuple[Replica, tuple[object, ...]]] = {}
        self._committed: dict[GroupId, int] = {}
        """The highest index that was seen committed."""
        self._configurations: dict[GroupId, dict[tuple[int, int], Configuration]] = {}
        """(index, term) of its entry -> configuration, of every one ever in force."""
        self.leaders: dict[GroupId, set[int]] = {}
        """Terms that had a leader."""
        self.commits_checked = 0

    def committed(self, group: GroupId) -> int:
        return self._committed.get(group, 0)

    def look(self, group: GroupId, replica: Replica) -> None:
        marks = replica.marks()
        key = (group, replica.replica)
        before = self._shown.get(key)
        if before is not None and before[1] == marks and before[0] is replica:
            return
        self._shown[key] = (replica, marks)
        shown: tuple[object, ...] = before[1] if before is not None else ()
        status = replica.status()
        try:
            self._checkers.setdefault(group, SafetyChecker(group)).check((replica,))
        except InvariantViolated as error:
            raise Violated(str(error)) from error
        if status.configuration is not None:
            self._check_in_force(group, replica, status)
            self._check_configuration(group, replica, status, status.configuration)
        self._check_flushed(group, replica, status)
        if status.role is Role.LEADER:
            self._check_matched(group, replica, status)
        if status.commit_index > self._committed.get(group, 0):
            self._check_committed(group, replica, status)
        if shown[:SHOWN] != marks[:SHOWN]:
            self._trace.add(f"g{group}r{replica.replica}", describe(status))
        if shown[:2] != marks[:2] and status.role is Role.LEADER:
            self.leaders.setdefault(group, set()).add(status.term)
            self._elected(group)

    def _check_flushed(self, group: GroupId, replica: Replica, status: Status) -> None:
        index, durable = status.flushed_index, self._durable(group, replica.replica)
        entry = replica.entry(index)
        if index and entry is not None and durable is not None and not durable.holds(index, entry.term):
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
            peer, durable, entry = self._peer(group, replica), self._durable(group, replica), leader.entry(index)
            if peer is None or durable is None or entry is None or peer.status().term > status.term:
                continue
            held = peer.entry(index)
            if not durable.holds(index, entry.term) or (held is not None and held.term != entry.term):
                raise Violated(
                    f"group {group}, leader {leader.replica} of term {status.term}: counts entry {index} of term "
                    f"{entry.term} as held by replica {replica}, which does not hold it durably"
                )

    def _check_committed(self, group: GroupId, replica: Replica, status: Status) -> None:
        """A leader is the first to know. What it calls committed its configuration's quorum holds, with all before."""
        index = self._committed[group] = status.commit_index
        self._overruled(group, lambda at, term: self._checkers[group].overruled(at, term, index))
        entry, configuration = replica.entry(index), status.configuration
        if status.role is not Role.LEADER or entry is None or configuration is None:
            return
        self.commits_checked += 1
        holders = [
            voter
            for voter in {*configuration.voters, *configuration.outgoing}
            if self._holds(group, voter, entry, status)
        ]
        if not is_quorum(configuration, holders):
            raise Violated(
                f"group {group}, leader {replica.replica} of term {status.term}: calls entry {index} of term "
                f"{entry.term} committed, which only {sorted(holders)} of {members(configuration)} hold durably"
            )

    def _holds(self, group: GroupId, voter: ReplicaId, entry: Entry, status: Status) -> bool:
        durable = self._durable(group, voter)
        if durable is None:
            # It was damaged since it told the leader, and has no vote until it holds the entry again (RULES W7).
            return status.match.get(voter, 0) >= entry.index
        return durable.holds(entry.index, entry.term)

    def _check_in_force(self, group: GroupId, replica: Replica, status: Status) -> None:
        """On append, and until it is truncated."""
        key, index = (group, replica.replica), status.configuration_index
        before, below = self._scanned.get(key, (None, 0))
        self._scanned[key] = (replica, status.last_index)
        if before is not replica:
            below = 0
        if index > max(status.last_index, status.snapshot_index):
            raise Violated(
                f"group {group}, replica {replica.replica}: the configuration of entry {index} is in force, its log "
                f"ends at {status.last_index}"
            )
        for above in range(max(below, index, status.first_index - 1) + 1, status.last_index + 1):
            entry = replica.entry(above)
            if entry is not None and entry.kind is EntryKind.CONFIGURATION:
                raise Violated(
                    f"group {group}, replica {replica.replica}: the configuration of entry {index} is in force, its "
                    f"log holds a later one at {above}"
                )

    def _check_own_term(self, group: GroupId, leader: Replica, status: Status, entry: Entry) -> None:
        """Called when a leader's configuration is first seen. In a group of one voter it may be committed already."""
        committed = leader.entry(status.commit_index)
        if committed is not None and committed.term < status.term == entry.term:
            raise Violated(
                f"group {group}, leader {leader.replica} of term {status.term}: appends a configuration at "
                f"{entry.index}, has committed {status.commit_index} of term {committed.term} only"
            )

    def _check_configuration(
        self, group: GroupId, replica: Replica, status: Status, configuration: Configuration
    ) -> None:
        index = status.configuration_index
        entry = replica.entry(index)
        known = self._configurations.setdefault(group, {})
        place = (index, entry.term if entry is not None else 0)
        if place in known or (entry is None and configuration in known.values()):
            return
        known[place] = configuration
        if entry is not None and status.role is Role.LEADER:
            self._check_own_term(group, replica, status, entry)
        before = self._configuration_before(group, replica, status, index)
        if before is not None and not quorums_meet(before, configuration):
            raise Violated(
                f"group {group}, replica {replica.replica}: configuration {members(configuration)} at {index} has "
                f"quorums that share nobody with some of {members(before)}, which was in force before"
            )
        self._trace.add(f"g{group}r{replica.replica}", f"has configuration {members(configuration)} at {index}")
        if not place[1] or not self._checkers[group].overruled(*place, self.committed(group)):
            self._configured(group, *place, configuration, self.committed(group))

    def _configuration_before(
        self, group: GroupId, replica: Replica, status: Status, index: int
    ) -> Configuration | None:
        """What was in force below `index` in this replica's log; None where that is compacted away."""
        known = self._configurations[group]
        for below in range(index - 1, status.first_index - 1, -1):
            entry = replica.entry(below)
            if entry is not None and entry.kind is EntryKind.CONFIGURATION:
                return known.get((below, entry.term))
        return known.get((0, 0)) if status.first_index == 1 and index else None


def members(configuration: Configuration) -> str:
    joint = f" leaving {list(configuration.outgoing)}" if configuration.outgoing else ""
    learners = f" learners {list(configuration.learners)}" if configuration.learners else ""
    return f"{list(configuration.voters)}{joint}{learners}"


def describe(status: Status) -> str:
    asleep = "".join(
        f" {name}" for name in ("quiesced", "forgetful", "storage_stalled", "removed") if getattr(status, name)
    )
    return (
        f"term {status.term} {status.role.name.lower()}{asleep}, leader {status.leader or 'unknown'}, log "
        f"{status.first_index}..{status.last_index} of t{status.last_term}, flushed {status.flushed_index}, "
        f"commit {status.commit_index}, applied {status.applied_index}"
    )
