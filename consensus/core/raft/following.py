"""A replica that follows: taking entries, commit index and snapshots of the current leader, and answering.

Owns: how far the log is verified against the current leader's in the current term, and the answer owed to it.
Invariants: an answer never speaks of more than is both flushed here and verified in this term (HAZARDS 4, 5), whatever
asked for it: entries, a duplicate, an empty request, a heartbeat. Must not know: elections, peers' progress.

Answers are cumulative, so one answer serves all requests since the last: it goes out when what was verified is durable,
and in between when a batch became durable.
"""

from __future__ import annotations

from consensus.core.configuration import problem_of
from consensus.core.interface import (
    AppendRequest,
    AppendResponse,
    Heartbeat,
    HeartbeatResponse,
    SnapshotOffer,
)
from consensus.core.raft.commit import Commit
from consensus.core.raft.durability import Durability
from consensus.core.raft.log import size_of
from consensus.core.raft.state import ReplicaState


class Following:
    __slots__ = ("_acknowledged", "_commit", "_durability", "_owed", "_state", "_term", "verified")

    def __init__(self, state: ReplicaState, durability: Durability, commit: Commit) -> None:
        self._state = state
        self._durability = durability
        self._commit = commit
        self._forget()

    def _forget(self) -> None:
        self._term = self._state.term
        self.verified = 0
        """Up to here this log is known to equal that of the leader of `_term`."""
        self._owed = False
        self._acknowledged = 0

    def role_changed(self) -> None:
        """In a new term nothing is verified against whoever will lead it. Within a term there is but one leader."""
        if self._term != self._state.term:
            self._forget()

    def durable_match(self) -> int:
        """What an answer may speak of."""
        return min(self._state.log.flushed, self.verified)

    # --- requests of the current leader -----------------------------------------------------------------------------

    def append(self, request: AppendRequest) -> None:
        log = self._state.log
        entries = request.entries
        end = request.previous_index + len(entries)
        if request.previous_index < log.base_index:
            # Its beginning is compacted away here, so committed, so the same as the leader's.
            skipped = log.base_index - request.previous_index
            entries = entries[skipped:]
            end = max(end, log.base_index)
        elif log.term(request.previous_index) != request.previous_term:
            self._reject(request.previous_index)
            return
        if self._full(request):
            self._state.drop("follower_full")
            return
        log.merge(entries, commit_index=self._commit.index)
        # The leader has every committed entry (leader completeness), so a short request verifies at least these.
        self.verified = max(self.verified, end, min(self._commit.index, log.last_index))
        self._commit.advance_to(min(request.commit, self.verified))
        self._owed = True

    def _full(self, request: AppendRequest) -> bool:
        """Whether its entries are dropped as if the network had lost them, because the disk does not keep up (HAZARDS
        27). While nothing waits for the disk they are taken: what is only not yet committed is bounded by its leader,
        and may need what comes now to become so."""
        log = self._state.log
        if log.flushed == log.last_index or request.previous_index + len(request.entries) <= log.last_index:
            return False
        more = sum(map(size_of, request.entries))
        return self.held_bytes() + more > self._state.config.follower_bytes_max

    def held_bytes(self) -> int:
        """Payload held that is not yet durable here, or not known committed."""
        log = self._state.log
        return log.bytes_above(min(log.flushed, self._commit.index))

    def _reject(self, previous_index: int) -> None:
        """Say where to try next: behind the log's end, or before the term that disagrees (Raft section 5.3)."""
        log = self._state.log
        if previous_index > log.last_index:
            index, term = log.last_index + 1, 0
        else:
            term = log.term(previous_index) or 0
            # Up to the commit index the logs agree, and up to what was verified: a leader takes a rejection at or below
            # what it knows to match for an old one.
            index = max(log.start_of_term(term), self._commit.index + 1, self.verified + 1)
        self._answer_append(rejected=True, conflict_index=index, conflict_term=term)

    def heartbeat(self, heartbeat: Heartbeat) -> None:
        self._commit.advance_to(min(heartbeat.commit, self.verified))
        state = self._state
        self._durability.send_durable(
            HeartbeatResponse(
                sender=state.me,
                to=heartbeat.sender,
                term=state.term,
                incarnation=state.incarnation,
                round=heartbeat.round,
                match_index=self.durable_match(),
                forgetful=state.forgetful,
            )
        )

    def snapshot(self, offer: SnapshotOffer) -> None:
        """The host holds a whole snapshot of the leader's."""
        state, meta = self._state, offer.meta
        if problem_of(meta.configuration) or meta.term > state.term:
            state.drop("bad_snapshot")
            return
        if meta.index > self._commit.index:
            if state.log.term(meta.index) == meta.term:
                # The log holds all of it: it was only not known to be committed.
                self._commit.advance_to(meta.index)
            else:
                state.log.restore(meta, commit_index=self._commit.index)
                self._commit.restore(meta)
        self.verified = max(self.verified, meta.index)
        self._owed = True

    def owe(self) -> None:
        """An answer would say something new."""
        self._owed = True

    # --- answers ----------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Send the answer owed, as far as it may go."""
        if not self._owed or self._state.leader == 0 or not self._durability.synced():
            return
        match = self.durable_match()
        if match >= self.verified:
            self._owed = False
        elif match <= self._acknowledged:
            return
        self._acknowledged = match
        self._answer_append(rejected=False)

    def _answer_append(self, *, rejected: bool, conflict_index: int = 0, conflict_term: int = 0) -> None:
        state = self._state
        self._durability.send_durable(
            AppendResponse(
                sender=state.me,
                to=state.leader,
                term=state.term,
                incarnation=state.incarnation,
                rejected=rejected,
                match_index=self.durable_match(),
                conflict_index=conflict_index,
                conflict_term=conflict_term,
                last_index=state.log.last_index,
                forgetful=state.forgetful,
            )
        )
