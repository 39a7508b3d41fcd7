"""The safety properties of consensus, checked from outside over the replicas of one group.

Owns: what was ever seen of a group (leaders, entries, commits), and the comparison of each new picture with it.
Invariants: checking costs what is new since the last call, not the length of the logs. Must not know: how a replica
works inside.

Properties of Raft (section 5, figure 3), for `SafetyChecker.check`:

* election safety: at most one leader a term;
* log matching: an entry's (index, term) decides it and all before it;
* leader completeness: what was committed is in the log of every leader of a later term;
* state-machine safety: no two replicas ever hold different committed entries at one index;
* configurations whose quorums overlap (section 6): one and the next in the same log, and all that are in force in logs
  that hold the last committed one;

and within one life of a replica neither its term nor its commit index ever falls.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from consensus.core.configuration import decode_configuration
from consensus.core.errors import InvariantViolated
from consensus.core.interface import Configuration, Entry, EntryKind, GroupId, ReplicaId, Role, Status

Identity: TypeAlias = tuple[int, int, int]
"""What tells two entries apart: (term, kind, CRC of the payload)."""


class Replica(Protocol):
    """What is looked at: a core, by shape."""

    @property
    def replica(self) -> ReplicaId: ...

    def status(self) -> Status: ...

    def entry(self, index: int) -> Entry | None: ...


@dataclass(frozen=True, slots=True)
class _InForce:
    """A configuration and its entry; term 0 where that is not in the log."""

    index: int
    term: int
    configuration: Configuration


@dataclass(slots=True)
class _Seen:
    """What one replica showed last time. `terms` are those of its log, by index; it survives restarts."""

    life: object = None
    term: int = 0
    commit_index: int = 0
    led_term: int = 0
    terms: dict[int, int] = field(default_factory=dict)
    last_index: int = 0
    snapshot_index: int = 0
    in_force: _InForce | None = None


def quorums_overlap(one: Configuration, other: Configuration) -> bool:
    """Whether a quorum of one and a quorum of the other always share a member: each holds a majority of every
    electorate, so it is enough that two electorates can't be split between them. Written from the definition, and not
    with the arithmetic that decides."""
    electorates = [[set(part) for part in (each.voters, each.outgoing) if part] for each in (one, other)]
    return any(not _may_split(first, second) for first in electorates[0] for second in electorates[1])


def _may_split(one: set[ReplicaId], other: set[ReplicaId]) -> bool:
    """Whether a majority of each can be found without a common member: who is in one only is taken first, what is then
    missing comes from those in both, each of whom can be taken once."""
    missing = [len(each) // 2 + 1 - len(each - rest) for each, rest in ((one, other), (other, one))]
    return sum(max(0, count) for count in missing) <= len(one & other)


def identity(entry: Entry) -> Identity:
    return entry.term, int(entry.kind), entry.crc


class SafetyChecker:
    """Watches one group. Call `check` after every event; it raises `InvariantViolated` and says what disagrees."""

    def __init__(self, group: GroupId = 0) -> None:
        self._group = group
        self._seen: dict[ReplicaId, _Seen] = {}
        self._leaders: dict[int, ReplicaId] = {}
        """Who was seen leading a term."""
        self._entries: dict[tuple[int, int], tuple[int, Identity]] = {}
        """(index, term) -> (term of the entry before, identity), of every entry ever seen in a log."""
        self._committed: dict[int, tuple[Identity, int]] = {}
        """index -> (identity, the lowest term in which it was seen committed)."""
        self._origin: Configuration | None = None
        """What the group began with."""
        self._settled: _InForce | None = None
        """The last configuration seen committed."""

    def check(self, replicas: Iterable[Replica]) -> None:
        """Take a picture of all replicas that run now."""
        pictures = [(replica, replica.status()) for replica in replicas]
        for replica, status in pictures:
            seen = self._seen.setdefault(replica.replica, _Seen())
            self._check_monotonic(replica, status, seen)
            self._check_leader(replica, status)
            self._check_log(replica, status, seen)
            self._check_commits(replica, status, seen)
        for replica, status in pictures:
            self._check_completeness(replica, status)
            self._check_configuration(replica, status)

    def overruled(self, index: int, term: int, commit_index: int) -> bool:
        """Whether the entry of that term can't be committed any more: another one is, in its place, or a later term's
        before it (terms never fall along a log). `commit_index`: the highest seen."""
        known = self._committed.get(min(index, commit_index))
        return known is not None and (known[0][0] != term if index <= commit_index else known[0][0] > term)

    def _fail(self, replica: Replica, what: str) -> InvariantViolated:
        return InvariantViolated(f"group {self._group}, replica {replica.replica}: {what}")

    def _check_monotonic(self, replica: Replica, status: Status, seen: _Seen) -> None:
        if seen.life is replica:
            if status.term < seen.term:
                raise self._fail(replica, f"its term fell from {seen.term} to {status.term}")
            if status.commit_index < seen.commit_index:
                raise self._fail(replica, f"its commit index fell from {seen.commit_index} to {status.commit_index}")
        else:
            # A new life: term and commit index of the last one may not have been durable.
            seen.life = replica
            seen.commit_index = 0
            seen.led_term = 0
        seen.term = status.term
        if status.applied_index > status.commit_index:
            raise self._fail(replica, f"applied {status.applied_index}, committed only {status.commit_index}")

    def _check_leader(self, replica: Replica, status: Status) -> None:
        """Election safety."""
        if status.role is Role.LEADER:
            known = self._leaders.setdefault(status.term, replica.replica)
            if known != replica.replica:
                raise self._fail(replica, f"leads term {status.term}, as replica {known} did")

    def _check_log(self, replica: Replica, status: Status, seen: _Seen) -> None:
        """Log matching: if (index, term) decides the entry and the term before it, it decides, by induction, all
        before."""
        terms = seen.terms
        for index in range(status.last_index + 1, seen.last_index + 1):
            terms.pop(index, None)
        seen.last_index = status.last_index
        # Downwards until what was seen before: below it nothing can have changed without being noticed there.
        for index in range(status.last_index, status.first_index - 1, -1):
            entry = replica.entry(index)
            if entry is None:
                raise self._fail(replica, f"entry {index} is missing")
            if terms.get(index) == entry.term:
                break
            terms[index] = entry.term
            before = replica.entry(index - 1)
            known = self._entries.get((index, entry.term))
            term_before = before.term if before else (known[0] if known else 0)
            if known is None:
                if before is not None or index == 1:
                    self._entries[(index, entry.term)] = (term_before, identity(entry))
            elif known != (term_before, identity(entry)):
                raise self._fail(
                    replica, f"entry {index} of term {entry.term} is not, or does not follow, what others hold there"
                )

    def _check_commits(self, replica: Replica, status: Status, seen: _Seen) -> None:
        """State-machine safety."""
        for index in range(max(seen.commit_index + 1, status.first_index), status.commit_index + 1):
            entry = replica.entry(index)
            if entry is None:
                raise self._fail(replica, f"committed {status.commit_index}, entry {index} is missing")
            found = identity(entry)
            known = self._committed.get(index)
            if known is not None and known[0] != found:
                raise self._fail(replica, f"committed {found} at {index}, elsewhere it is {known[0]}")
            if known is None or status.term < known[1]:
                self._committed[index] = (found, status.term)
        seen.commit_index = status.commit_index

    def _check_completeness(self, replica: Replica, status: Status) -> None:
        """Leader completeness, once a leadership."""
        seen = self._seen[replica.replica]
        if status.role is not Role.LEADER or seen.led_term == status.term:
            return
        seen.led_term = status.term
        for index, (found, term) in self._committed.items():
            if term >= status.term or index < status.first_index:
                continue
            entry = replica.entry(index)
            if entry is None or identity(entry) != found:
                raise self._fail(replica, f"leads term {status.term} without entry {index}, committed in term {term}")

    def _check_configuration(self, replica: Replica, status: Status) -> None:
        """Joint consensus: nobody decides behind the others' back."""
        if status.configuration is None:
            return
        seen = self._seen[replica.replica]
        seen.snapshot_index = status.snapshot_index
        index = status.configuration_index
        now = _InForce(index, seen.terms.get(index, 0), status.configuration)
        if index == 0 and self._origin is None:
            self._origin = status.configuration
        before = None
        if now != seen.in_force:
            seen.in_force = now
            before = self._configuration_before(replica, status, index)
        elif index > status.commit_index or not self._is_later(now):
            return
        if before is not None and not quorums_overlap(before.configuration, now.configuration):
            raise self._fail(replica, f"has {now.configuration} in force, whose quorums may miss those of {before}")
        for one in (before, now):
            if one is not None and one.index <= status.commit_index and self._is_later(one):
                self._settled = one
        self._check_siblings(replica, now)

    def _is_later(self, one: _InForce) -> bool:
        return self._settled is None or one.index > self._settled.index

    def _configuration_before(self, replica: Replica, status: Status, index: int) -> _InForce | None:
        """The one below `index` in the same log; None where nothing tells."""
        for below in range(index - 1, status.first_index - 1, -1):
            entry = replica.entry(below)
            if entry is not None and entry.kind is EntryKind.CONFIGURATION:
                return _InForce(below, entry.term, decode_configuration(entry.payload))
        if not index or status.first_index > 1 or self._origin is None:
            return None
        return _InForce(0, 0, self._origin)

    def _check_siblings(self, replica: Replica, now: _InForce) -> None:
        """Only a log that holds what is committed can win an election; of those, no two can win without each other."""
        settled = self._settled
        if settled is None or not self._holds(self._seen[replica.replica], settled):
            return
        for other, seen in self._seen.items():
            theirs = seen.in_force
            if theirs is None or not self._holds(seen, settled):
                continue
            if not quorums_overlap(now.configuration, theirs.configuration):
                raise self._fail(
                    replica,
                    f"has {now.configuration} in force, whose quorums may miss those of replica {other}: {theirs}",
                )

    def _holds(self, seen: _Seen, settled: _InForce) -> bool:
        if seen.in_force is None or seen.in_force.index < settled.index:
            return False
        return seen.snapshot_index >= settled.index or seen.terms.get(settled.index, 0) == settled.term
