"""What is committed, and what of it was handed out to be applied.

Owns: commit index, the cursor of entries handed out, the applied index. Invariants: applied <= handed out <=
min(commit, flushed), none of them ever falls, and a leader commits by counting only entries of its own term. Must not
know: peers, messages, elections.
"""

from __future__ import annotations

from collections.abc import Mapping

from consensus.core.errors import InvariantViolated
from consensus.core.interface import Configuration, Entry, ReplicaId, SnapshotMeta
from consensus.core.quorum import committed_index
from consensus.core.raft.log import Log


def may_commit_by_counting(entry_term: int | None, *, leader_term: int) -> bool:
    """Only entries of the leader's own term commit by counting replicas; older ones commit along with them
    (Raft section 5.4.2, figure 8; HAZARDS 1)."""
    return entry_term == leader_term


class Commit:
    __slots__ = ("_log", "applied", "handed_out", "index", "installing")

    def __init__(self, log: Log, *, commit_index: int) -> None:
        self._log = log
        self.index = max(commit_index, log.snapshot_index)
        self.handed_out = self.applied = log.snapshot_index
        self.installing: SnapshotMeta | None = None
        """A snapshot on its way into the state machine: nothing is handed out until it is in."""

    def advance_to(self, index: int) -> bool:
        """A leader said that everything up to `index`, all of which this log holds, is committed."""
        if index <= self.index:
            return False
        if index > self._log.last_index:
            raise InvariantViolated(f"commit index {index} is beyond the log's end {self._log.last_index}")
        self.index = index
        return True

    def count(self, configuration: Configuration, matches: Mapping[ReplicaId, int], *, leader_term: int) -> bool:
        """The leader's rule. `matches` holds what is durable at each member, the leader's own flushed index too; only
        voters count."""
        index = committed_index(configuration, matches)
        if index <= self.index or not may_commit_by_counting(self._log.term(index), leader_term=leader_term):
            return False
        return self.advance_to(index)

    # --- to the state machine ---------------------------------------------------------------------------------------

    def to_hand_out(self) -> bool:
        return self.installing is None and self.handed_out < min(self.index, self._log.flushed)

    def hand_out(self, *, bytes_max: int) -> tuple[Entry, ...]:
        """The next entries to be applied: committed, and durable on this replica (RULES S3)."""
        if not self.to_hand_out():
            return ()
        last = min(self.index, self._log.flushed)
        entries = self._log.slice(self.handed_out + 1, last=last, bytes_max=bytes_max)
        self.handed_out = entries[-1].index
        return entries

    def set_applied(self, index: int) -> None:
        if index > self.handed_out:
            raise InvariantViolated(f"entry {index} was reported applied, only {self.handed_out} was handed out")
        self.applied = max(self.applied, index)

    def restore(self, meta: SnapshotMeta) -> None:
        """The log was replaced by a snapshot."""
        self.index = max(self.index, meta.index)
        self.handed_out = meta.index
        self.installing = meta

    def installed(self, meta: SnapshotMeta) -> None:
        """The state machine holds the snapshot. A report of one that was superseded meanwhile is ignored."""
        if self.installing is not None and meta.index == self.installing.index:
            self.installing = None
            self.applied = meta.index
