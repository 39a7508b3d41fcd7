"""The safety properties of consensus, checked from outside over the replicas of one group.

Owns: what was ever seen of a group (leaders, entries, commits), and the comparison of each new picture with it.
Invariants: checking costs what is new since the last call, not the length of the logs. Must not know: how a replica
works inside.

Properties of Raft (section 5, figure 3), for `SafetyChecker.check`:

* election safety: at most one leader a term;
* log matching: an entry's (index, term) decides it and all before it;
* leader completeness: what was committed is in the log of every leader of a later term;
* state-machine safety: no two replicas ever hold different committed entries at one index;

and within one life of a replica neither its term nor its commit index ever falls.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from consensus.core.errors import InvariantViolated
from consensus.core.interface import Entry, GroupId, ReplicaId, Role, Status

Identity: TypeAlias = tuple[int, int, int]
"""What tells two entries apart: (term, kind, CRC of the payload)."""


class Replica(Protocol):
    """What is looked at: a core, by shape."""

    @property
    def replica(self) -> ReplicaId: ...

    def status(self) -> Status: ...

    def entry(self, index: int) -> Entry | None: ...


@dataclass(slots=True)
class _Seen:
    """What one replica showed last time. `terms` are those of its log, by index; it survives restarts."""

    life: object = None
    term: int = 0
    commit_index: int = 0
    led_term: int = 0
    terms: dict[int, int] = field(default_factory=dict)
    last_index: int = 0


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
