"""Who belongs to the group, and in which order of preference: the configurations of one replica's log.

Owns: the configuration in force, and those it replaced that may come back or are still asked for. Invariants: the one
in force is the last in the log, committed or not; without one there it is the snapshot's, or the one the replica began
with. It takes effect when its entry is appended, ends when the entry is truncated, and a snapshot that replaces the log
replaces them all (HAZARDS 19, 20): the log says so, here and nowhere else. Must not know: terms, roles, what is being
changed and why.
"""

from __future__ import annotations

from enum import IntEnum

from consensus.core.configuration import decode_configuration, members_of, next_replica_of, problem_of
from consensus.core.errors import InvariantViolated
from consensus.core.interface import Configuration, Entry, ReplicaId


class Standing(IntEnum):
    """What a replica is, as far as this log knows."""

    MEMBER = 1
    """Of the configuration in force, or of one that it replaces and that may come back or is not yet known replaced:
    a leader that is not in the final configuration leads until that is committed (dissertation section 4.2.2)."""
    UNKNOWN = 2
    """Never a member. It may be one that this log does not know yet, so what it asks is looked at (dissertation
    section 4.1)."""
    REMOVED = 3
    """It was a member, says a committed configuration, and so never comes back (RULES I1)."""


class Membership:
    """The configurations of the log of the replica `me`."""

    __slots__ = ("_history", "configuration", "index", "me", "members", "peers", "voters")

    def __init__(self, me: ReplicaId, configuration: Configuration) -> None:
        """The one that the replica begins with. Raises `ValueError` for a configuration that can't be."""
        problem = problem_of(configuration)
        if problem:
            raise ValueError(f"configuration of replica {me}: {problem}")
        self.me = me
        self._history: list[tuple[int, Configuration]] = [(0, configuration)]
        """(index, configuration), ascending. The first stands for all before it: it can't be truncated."""
        self._adopt()

    def _adopt(self) -> None:
        """The last one is in force."""
        self.index, self.configuration = self._history[-1]
        configuration = self.configuration
        self.voters = tuple(dict.fromkeys((*configuration.voters, *configuration.outgoing)))
        """Everybody with a vote, in order of preference: while the configuration is joint, the outgoing come last."""
        self.members = members_of(configuration)
        self.peers = tuple(member for member in (*self.voters, *configuration.learners) if member != self.me)

    # --- what happens to the log ------------------------------------------------------------------------------------

    def appended(self, entry: Entry) -> None:
        """A configuration entry stands at the end of the log. Raises `InvariantViolated` when it does not decode: those
        that come from peers were looked at before."""
        try:
            configuration = decode_configuration(entry.payload)
        except ValueError as error:
            raise InvariantViolated(f"configuration entry {entry.index} of term {entry.term}: {error}") from error
        self._history.append((entry.index, configuration))
        self._adopt()

    def truncated(self, last_index: int) -> None:
        """The log ends at `last_index` now."""
        if self.index > last_index:
            first, *rest = self._history
            self._history = [first, *(one for one in rest if one[0] <= last_index)]
            self._adopt()

    def restored(self, index: int, configuration: Configuration) -> None:
        """A snapshot replaced the whole log: whatever stood in it, uncommitted or not, is gone (HAZARDS 20).
        Raises `ValueError` for a configuration that can't be."""
        problem = problem_of(configuration)
        if problem:
            raise ValueError(f"configuration of a snapshot at {index}: {problem}")
        self._history = [(index, configuration)]
        self._adopt()

    def compacted(self, index: int) -> None:
        """What lies below `index` won't be asked for any more."""
        while len(self._history) > 1 and self._history[1][0] <= index:
            del self._history[0]

    # --- questions --------------------------------------------------------------------------------------------------

    def at(self, index: int) -> Configuration:
        """The last one at or below `index`, which must not be below the snapshot's."""
        found = next((one for at, one in reversed(self._history) if at <= index), None)
        if found is None:
            raise InvariantViolated(f"the configuration at {index} is not known any more")
        return found

    def committed(self, commit_index: int) -> tuple[int, Configuration]:
        """The last one known to be committed, and where it stands."""
        return next((one for one in reversed(self._history) if one[0] <= commit_index), self._history[0])

    def standing(self, replica: ReplicaId, *, commit_index: int) -> Standing:
        if replica in self.members:
            return Standing.MEMBER
        for index, configuration in reversed(self._history):
            if replica in members_of(configuration):
                return Standing.MEMBER
            if index <= commit_index:
                return Standing.REMOVED if replica < next_replica_of(configuration) else Standing.UNKNOWN
        return Standing.UNKNOWN

    def left(self, *, commit_index: int) -> bool:
        """This replica was removed, says its own log."""
        return self.me not in self.members and self.standing(self.me, commit_index=commit_index) is Standing.REMOVED

    def may_lead(self, *, commit_index: int) -> bool:
        """It votes, or votes but for a configuration that is not known to be committed. Of these, somebody who is to
        leave may be the only one left whose log holds that configuration: then nobody else can win, and commit it
        (dissertation section 4.2.2)."""
        if self.votes():
            return True
        for index, configuration in reversed(self._history):
            if self.me in configuration.voters or self.me in configuration.outgoing:
                return True
            if index <= commit_index:
                break
        return False

    def votes(self) -> bool:
        """In the configuration in force."""
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
