"""What comes from the past: messages of earlier lives of their senders, and of earlier terms.

Owns the latest life of each peer that was heard of (RULES C4), and what a message of an earlier term is answered.
Invariant: what a member's life was is not forgotten, however many strangers send. Must not know: what becomes of a
message of the present.
"""

from __future__ import annotations

from collections.abc import Set

from consensus.core.configuration import MEMBERS_MAX
from consensus.core.interface import (
    AnyMessage,
    AppendRequest,
    AppendResponse,
    Heartbeat,
    HeartbeatResponse,
    ReadRequest,
    ReadResponse,
    ReplicaId,
    VoteRequest,
    VoteResponse,
)
from consensus.core.raft.state import ReplicaState

LIVES_MAX = 2 * MEMBERS_MAX
"""Replicas whose latest life is remembered."""


class Lives:
    """Incarnations of peers, as their messages tell."""

    __slots__ = ("_latest",)

    def __init__(self) -> None:
        self._latest: dict[ReplicaId, int] = {}

    def __len__(self) -> int:
        return len(self._latest)

    def latest(self, replica: ReplicaId) -> int:
        """0: not heard of."""
        return self._latest.get(replica, 0)

    def remember(self, replica: ReplicaId, incarnation: int, *, members: Set[ReplicaId]) -> None:
        """Of strangers and members of the past, those of `members` not among them, some are forgotten at the bound."""
        if len(self._latest) >= LIVES_MAX and replica not in self._latest:
            self._latest = {known: life for known, life in self._latest.items() if known in members}
        self._latest[replica] = incarnation


def answer_to_earlier_term(state: ReplicaState, message: AnyMessage) -> AnyMessage | None:
    """Who asks from an earlier term must hear of this one: a leader of the past would go on for ever, and a replica of
    a higher term could not come back (dissertation section 9.6). None for what asks nothing."""
    me, to, term, incarnation = state.me, message.sender, state.term, state.incarnation
    match message:
        case VoteRequest():
            return VoteResponse(sender=me, to=to, term=term, incarnation=incarnation, pre=False, granted=False)
        case AppendRequest():
            return AppendResponse(
                sender=me,
                to=to,
                term=term,
                incarnation=incarnation,
                rejected=True,
                match_index=0,
                forgetful=state.forgetful,
            )
        case Heartbeat():
            return HeartbeatResponse(
                sender=me,
                to=to,
                term=term,
                incarnation=incarnation,
                round=message.round,
                match_index=0,
                forgetful=state.forgetful,
            )
        case ReadRequest():
            return ReadResponse(sender=me, to=to, term=term, incarnation=incarnation, token=message.token, refused=True)
        case _:
            return None
