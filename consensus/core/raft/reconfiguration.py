"""A leader that changes who belongs to the group (Raft section 6; dissertation sections 4.2 and 4.3).

Owns: when a change is refused, the entries that make it, and what a leader does once one is committed. Invariants: one
change at a time; none before an entry of the own term is committed (HAZARDS 18); a new voter is a learner that caught
up; a joint configuration is left by whoever leads as soon as it is committed; a leader that is not in the final
configuration leads, without counting itself, until that is committed, and then hands over or steps down. Must not
know: how configurations take effect (membership.py), which changes make sense (changes.py).
"""

from __future__ import annotations

from collections.abc import Callable

from consensus.core.checksum import crc32c
from consensus.core.configuration import encode_configuration
from consensus.core.errors import MembershipRefused, NotLeader
from consensus.core.interface import Configuration, EntryKind, MembershipChange, Removed, ReplicaId, Role
from consensus.core.raft.changes import final_step, first_step, quorum_problem, same, static_problem, target_of
from consensus.core.raft.commit import Commit
from consensus.core.raft.durability import Durability
from consensus.core.raft.replication import Replication
from consensus.core.raft.state import ReplicaState

TOLD_MAX = 1024
"""Removed replicas whose last answer is remembered."""


def own_term_committed(*, commit_index: int, noop_index: int) -> bool:
    """Only then the leader knows which configuration is committed: an earlier leader's, which it lacks, could be, and
    their quorums need not overlap (HAZARDS 18)."""
    return commit_index >= noop_index


class Reconfiguration:
    __slots__ = ("_commit", "_durability", "_now_ms", "_on_retired", "_replication", "_settled", "_state", "_told")

    def __init__(
        self,
        state: ReplicaState,
        commit: Commit,
        durability: Durability,
        replication: Replication,
        on_retired: Callable[[], None],
    ) -> None:
        """`on_retired` is called when the final configuration is committed and this leader does not vote in it."""
        self._state = state
        self._commit = commit
        self._durability = durability
        self._replication = replication
        self._on_retired = on_retired
        self._now_ms = 0
        self._told: dict[ReplicaId, int] = {}
        """When a removed replica was last told."""
        self.role_changed()

    def role_changed(self) -> None:
        self._settled = -1
        """The index of the last configuration that this leader saw through to its end."""

    def tick(self, elapsed_ms: int) -> None:
        self._now_ms += elapsed_ms

    # --- a change is asked for --------------------------------------------------------------------------------------

    def propose(self, change: MembershipChange) -> tuple[int, int]:
        """Raises `NotLeader` or `MembershipRefused`."""
        state, current = self._state, self._state.membership.configuration
        if state.role is not Role.LEADER:
            raise NotLeader(state.leader, state.term)
        target = target_of(current, change)
        if same(final_step(current), target):
            return self._in_force()
        problem, later = self._problem(current, target, change)
        if problem:
            raise MembershipRefused(problem, later=later)
        return self._append(first_step(current, target))

    def _in_force(self) -> tuple[int, int]:
        """(term, index) of the configuration in force, or of the snapshot that holds it."""
        log, index = self._state.log, self._state.membership.index
        term = log.term(index)
        return (term, index) if term is not None else (log.base_term, log.base_index)

    def _problem(self, current: Configuration, target: Configuration, change: MembershipChange) -> tuple[str, bool]:
        """(why not, whether it may be possible later)."""
        busy = self._under_way(current)
        if busy:
            return busy, True
        never = static_problem(current, target, change)
        if never:
            return never, False
        if not own_term_committed(commit_index=self._commit.index, noop_index=self._replication.noop_index):
            return "this leader is new: it has committed no entry of its own term yet", True
        for replica in target.voters:
            lacking = "" if replica in current.voters else self._lacking(replica)
            if lacking:
                return lacking, True
        return quorum_problem(current, target, self._reachable()), True

    def _under_way(self, current: Configuration) -> str:
        if not current.outgoing and self._state.membership.index <= self._commit.index:
            return ""
        return (
            f"a change to voters {list(current.voters)} and learners {list(current.learners)} is under way, entry "
            f"{self._state.membership.index}: one at a time"
        )

    def _lacking(self, learner: ReplicaId) -> str:
        """Why it can't vote yet: the group would wait for it to commit anything (dissertation section 4.2.1)."""
        log, progress = self._state.log, self._replication.progress.get(learner)
        if progress is None or not progress.round or not self._replication.reachable(learner):
            return f"learner {learner} has not answered for an election timeout: it can't be promoted"
        if progress.forgetful:
            return f"learner {learner} may have forgotten what it acknowledged, and is being filled: promote it later"
        if log.term(progress.match_index) is None:
            return f"learner {learner} holds nothing up to {progress.match_index}, and waits for a snapshot"
        behind, behind_max = log.bytes_above(progress.match_index), self._state.config.caught_up_bytes_max
        if behind > behind_max:
            return f"learner {learner} lacks {behind} bytes of the log; it may be promoted at {behind_max}"
        return ""

    def _reachable(self) -> set[ReplicaId]:
        """Who answered this leader lately, and counts. One that leads since a moment ago has not heard of everybody."""
        replication = self._replication
        others = {
            peer
            for peer, one in replication.progress.items()
            if one.answered and replication.reachable(peer) and not one.forgetful
        }
        return others | {self._state.me}

    def _append(self, configuration: Configuration) -> tuple[int, int]:
        payload = encode_configuration(configuration)
        appended = self._replication.append(payload, crc32c(payload), EntryKind.CONFIGURATION)
        self._replication.reconfigured()
        return appended

    # --- a change is committed --------------------------------------------------------------------------------------

    def committed(self) -> None:
        """This leader's commit index rose."""
        membership, index = self._state.membership, self._commit.index
        if self._settled == membership.index or index < membership.index:
            return
        if not own_term_committed(commit_index=index, noop_index=self._replication.noop_index):
            return
        if membership.configuration.outgoing:
            self._append(final_step(membership.configuration))
            return
        self._settled = membership.index
        for replica in self._replication.drop_removed():
            self.tell(replica)
        if not membership.votes():
            # Whoever leads next should know what is committed.
            self._replication.heartbeat()
            self._on_retired()

    def retired(self) -> bool:
        """Whether this leader leads only until somebody else does."""
        return self._settled == self._state.membership.index and not self._state.membership.votes()

    # --- those who left ---------------------------------------------------------------------------------------------

    def tell(self, replica: ReplicaId, *, at_once: bool = False) -> None:
        """It is no member any more, and should stop (RULES I1); now and then, however often it asks, or `at_once`."""
        state = self._state
        told = self._told.get(replica)
        if told is not None and not at_once and self._now_ms - told < state.config.election_timeout_ms:
            return
        index = state.membership.committed(self._commit.index)[0]
        if not index or not state.term:
            return  # known from the order that made this replica, not from the log
        if len(self._told) >= TOLD_MAX:
            self._told.clear()
        self._told[replica] = self._now_ms
        message = Removed(sender=state.me, to=replica, term=state.term, incarnation=state.incarnation, index=index)
        self._durability.send_durable(message)
