"""What all concerns of one replica share: who it is, its term and vote, its role, its log.

Owns: the few mutable fields every other file looks at; who may change them is said at each. Must not know: messages.
"""

from __future__ import annotations

from consensus.core.interface import GroupId, ReplicaId, Role
from consensus.core.raft.config import RaftConfig
from consensus.core.raft.log import Log
from consensus.core.raft.membership import Membership


class ReplicaState:
    __slots__ = (
        "config",
        "dropped",
        "forgetful",
        "group",
        "incarnation",
        "leader",
        "log",
        "me",
        "membership",
        "removed",
        "role",
        "storage_stalled",
        "term",
        "vote",
    )

    def __init__(
        self,
        *,
        group: GroupId,
        me: ReplicaId,
        incarnation: int,
        config: RaftConfig,
        membership: Membership,
        log: Log,
        term: int,
        vote: ReplicaId,
        forgetful: bool = False,
    ) -> None:
        self.group = group
        self.me = me
        self.incarnation = incarnation
        self.config = config
        self.membership = membership
        self.log = log
        self.term = term
        """Never falls. Changed by election.py only, as are vote, role and leader."""
        self.vote = vote
        """Whom this replica voted for in `term`; 0 for nobody. Goes from 0 to one replica, once a term."""
        self.role = Role.FOLLOWER
        self.leader: ReplicaId = 0
        """The leader of `term` this replica heard from; 0 when unknown."""
        self.forgetful = forgetful
        """It may have forgotten what it acknowledged, and counts for nothing (RULES W7). Ended by rejoin.py only."""
        self.removed = False
        """It is no member any more, and does nothing. Changed by core.py only."""
        self.storage_stalled = False
        """The host's disk makes no progress (HAZARDS 16). Changed by core.py only, as the host says."""
        self.dropped: dict[str, int] = {}
        """Messages dropped, by reason."""

    def drop(self, reason: str) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
