"""A replica that may have forgotten what it acknowledged comes back to count again (RULES W7).

Owns: how far such a replica must hold the log, and when its mark ends. Invariants: while the mark stands the replica
neither votes, campaigns, confirms reads nor counts for commit, and says so in every answer; the mark ends only after a
leader of a term at least its own durable one, asked in this life and in that leader's term, named its last index, and
this replica holds everything up to there durably, verified in the same term. Must not know: where the mark is kept,
what was lost.

Why that is enough: whatever was acknowledged before went to a leader of a term no higher than the durable one. Its
entries were at or below that leader's last index if it still leads, and if they were committed they are in the log of
every later leader, whose last index is at least theirs. Nobody was promised anything else: term and vote are not lost.
Holding is enough, committed it need not be: an entry that was acknowledged counts as held again.
"""

from __future__ import annotations

from consensus.core.interface import RejoinRequest, RejoinResponse, Role
from consensus.core.raft.durability import Durability
from consensus.core.raft.following import Following
from consensus.core.raft.state import ReplicaState


class Rejoin:
    __slots__ = ("_clearing", "_durability", "_following", "_last_index", "_state", "_term")

    def __init__(self, state: ReplicaState, durability: Durability, following: Following) -> None:
        self._state = state
        self._durability = durability
        self._following = following
        self._term = 0
        """Of the leader that named `_last_index`; 0: none has."""
        self._last_index = 0
        self._clearing = 0
        """The batch that ends the mark; 0 before it was issued."""

    # --- at the replica ---------------------------------------------------------------------------------------------

    def heard(self) -> None:
        """A heartbeat of the current leader was followed: ask it, until it answers."""
        state = self._state
        if not state.forgetful or self._term == state.term:
            return
        request = RejoinRequest(sender=state.me, to=state.leader, term=state.term, incarnation=state.incarnation)
        self._durability.send_durable(request)

    def told(self, answer: RejoinResponse) -> None:
        state = self._state
        current = answer.term == state.term and answer.sender == state.leader
        if not state.forgetful or not current or answer.for_incarnation != state.incarnation:
            state.drop("stale_rejoin")
        elif self._term != state.term:
            self._term, self._last_index = state.term, answer.last_index

    def due(self) -> bool:
        """The mark may end with the next batch."""
        state = self._state
        if not state.forgetful or self._clearing or not self._term or self._term != state.term:
            return False
        return self._durability.synced() and self._following.durable_match() >= self._last_index

    def issued(self, number: int) -> None:
        """It ends with this batch."""
        self._clearing = number

    def persisted(self, number: int) -> None:
        state = self._state
        if state.forgetful and self._clearing and self._clearing <= number:
            state.forgetful = False
            # The leader should hear of it at once.
            self._following.owe()

    # --- at the leader ----------------------------------------------------------------------------------------------

    def asked(self, request: RejoinRequest) -> None:
        state = self._state
        if state.role is not Role.LEADER:
            state.drop("not_leading")
            return
        self._durability.send(
            RejoinResponse(
                sender=state.me,
                to=request.sender,
                term=state.term,
                incarnation=state.incarnation,
                last_index=state.log.last_index,
                for_incarnation=request.incarnation,
            )
        )
