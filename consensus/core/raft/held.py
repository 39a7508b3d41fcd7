"""What a follower holds in memory because its disk, or the commit, lags behind (HAZARDS 27).

Owns: the payload above min(flushed, committed), counted entry by entry as the log grows, shrinks and settles.
Invariants: counting costs what is new since the last time, whatever happened to the log meanwhile; an entry is counted
once. Must not know: where entries come from.
"""

from __future__ import annotations

from collections import deque

from consensus.core.interface import Entry
from consensus.core.raft.log import Log, size_of


class Held:
    __slots__ = ("_entries", "_log", "_upto", "payload_bytes")

    def __init__(self, log: Log) -> None:
        self._log = log
        self._entries: deque[Entry] = deque()
        """Counted, oldest first: a part of the log, unless that changed since."""
        self._upto = 0
        """Looked at up to here."""
        self.payload_bytes = 0

    def count(self, commit_index: int) -> int:
        """The payload held now."""
        log, entries = self._log, self._entries
        while entries and log.entry(entries[-1].index) is not entries[-1]:
            # Overwritten, or gone into a snapshot.
            self._upto = entries[-1].index - 1
            self.payload_bytes -= size_of(entries.pop())
        settled = min(log.flushed, commit_index)
        while entries and entries[0].index <= settled:
            self.payload_bytes -= size_of(entries.popleft())
        for index in range(max(self._upto, settled, log.base_index) + 1, log.last_index + 1):
            entry = log.entry(index)
            if entry is not None:
                entries.append(entry)
                self.payload_bytes += size_of(entry)
        self._upto = log.last_index
        return self.payload_bytes
