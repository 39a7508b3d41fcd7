"""Which flushes are reported before they are synced, and for how long that may go on (RULES W8, durability
`replicated`).

Owns that judgement. Invariants: only entries are reported unsynced; a term or a vote, a configuration, a creation, a
mark, a tombstone, a snapshot's record never is; what is not synced is bounded in bytes and in time. Must not know:
threads, disks, clocks.
"""

from __future__ import annotations

from collections.abc import Iterable

from consensus.core.interface import EntryKind, GroupId
from consensus.core.raft.log import size_of
from consensus.storage.interface import GroupAppend


class Behind:
    """Of one life of a log. Not for several threads at once."""

    def __init__(self, *, ms_max: int = 20, bytes_max: int = 8 << 20) -> None:
        """Written entries are synced at the latest after `ms_max`, or when they are `bytes_max` together."""
        self.ms_max = ms_max
        self.bytes_max = bytes_max
        self.bytes = 0
        """Reported and not synced."""
        self._promised: dict[GroupId, tuple[int, int]] = {}
        """Term and vote of each group as they were synced in this life."""

    def may_follow(self, appends: Iterable[GroupAppend]) -> bool:
        """Whether this flush is reported once it is written; otherwise it is synced first, with all before."""
        appends = list(appends)
        follow = [self._only_entries(append) for append in appends]  # Each is looked at, for what it notes.
        if not all(follow):
            return False
        self.bytes += sum(size_of(entry) for append in appends for entry in append.entries)
        return True

    @property
    def due(self) -> bool:
        return self.bytes >= self.bytes_max

    def synced(self) -> None:
        self.bytes = 0

    def _only_entries(self, append: GroupAppend) -> bool:
        """Notes the term and the vote: a flush that tells new ones is synced."""
        if append.tombstone or append.create:
            self._promised.pop(append.group, None)  # Those were another replica's.
        state, known = append.hard_state, self._promised.get(append.group)
        if state is not None:
            self._promised[append.group] = (state.term, state.vote)
            if known != (state.term, state.vote):
                return False
        rare = (append.create, append.tombstone, append.forget, append.clear_forgetful, append.install)
        return not any(rare) and all(entry.kind is not EntryKind.CONFIGURATION for entry in append.entries)
