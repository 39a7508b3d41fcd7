"""Who belongs to the group, and in which order of preference.

Owns: the configuration in force. Invariants: it has voters, none twice. Changing it by log entries comes later: then it
takes effect on append and is rolled back on truncation, here and nowhere else (HAZARDS 19). Must not know: terms, logs.
"""

from __future__ import annotations

from consensus.core.configuration import members_of, problem_of
from consensus.core.interface import Configuration, ReplicaId


class Membership:
    """The configuration in force, seen by the replica `me`."""

    __slots__ = ("configuration", "me", "members", "peers", "voters")

    def __init__(self, me: ReplicaId, configuration: Configuration) -> None:
        """Raises `ValueError` for a configuration that can't be."""
        self.me = me
        self.adopt(configuration)

    def adopt(self, configuration: Configuration) -> None:
        problem = problem_of(configuration)
        if problem:
            raise ValueError(f"configuration of replica {self.me}: {problem}")
        self.configuration = configuration
        self.voters = tuple(dict.fromkeys((*configuration.voters, *configuration.outgoing)))
        """Everybody with a vote, in order of preference: while the configuration is joint, the outgoing come last."""
        self.members = members_of(configuration)
        self.peers = tuple(member for member in (*self.voters, *configuration.learners) if member != self.me)

    def votes(self) -> bool:
        return self.me in self.voters

    def place(self, *, without: ReplicaId = 0) -> int:
        """This voter's place in the order of preference, from 0, counted without the replica `without` (a lost leader,
        who will not campaign). A learner's place is behind all voters."""
        place = 0
        for voter in self.voters:
            if voter == self.me:
                return place
            place += voter != without
        return place
