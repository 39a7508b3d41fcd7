"""The log of one replica, and how much of it is durable.

Owns: entries above a base (what compaction left), the newest snapshot's meta, and three cursors: `issued` (handed out
to be written), `flushed` (durable) and `unloaded` (payload left to the host's log on disk). Invariants: entries are
contiguous and their terms never fall; base <= snapshot index; only what is durable is unloaded; flushed only ever
speaks of entries that stand in the log now: a batch being written whose entries were overwritten meanwhile is cut at
that point, so that it can't count even if the same entry comes back (HAZARDS 5); the membership is always that of what
stands in the log now (HAZARDS 19, 20). Must not know: roles, peers, what is committed (callers say it), payload
contents.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from operator import attrgetter

from consensus.core.configuration import encode_configuration
from consensus.core.errors import InvariantViolated
from consensus.core.interface import Entry, EntryKind, Payload, SnapshotMeta
from consensus.core.raft.membership import Membership

_term = attrgetter("term")
ENTRIES_MAX = 4096
"""Entries handed out at a time, however small: each costs tens of bytes beside its payload on its way."""


def payload_bytes(payload: Payload) -> int:
    return payload.nbytes if isinstance(payload, memoryview) else len(payload)


def size_of(entry: Entry) -> int:
    """Payload bytes of an entry, here or left to the log on disk."""
    return entry.stored_bytes or payload_bytes(entry.payload)


def follow_on(entries: Sequence[Entry], *, previous_index: int, previous_term: int) -> bool:
    """Whether entries are contiguous after (previous_index, previous_term) and their terms never fall."""
    index, term = previous_index, previous_term
    for entry in entries:
        index += 1
        if entry.index != index or entry.term < term:
            return False
        term = entry.term
    return True


class _Batch:
    """A batch being written: durable up to `last_index` once `number` is reported. Clipped on truncation."""

    __slots__ = ("last_index", "number")

    def __init__(self, number: int, last_index: int) -> None:
        self.number = number
        self.last_index = last_index


class Log:
    __slots__ = (
        "_ends",
        "_entries",
        "_install",
        "_membership",
        "_writing",
        "base_index",
        "base_term",
        "flushed",
        "issued",
        "snapshot",
        "unloaded",
    )

    def __init__(self, entries: Sequence[Entry], snapshot: SnapshotMeta | None, membership: Membership) -> None:
        """What recovery found, all of it durable. `membership`, which the replica begins with, follows this log from
        here on. Raises `InvariantViolated` when it does not fit together."""
        self.snapshot = snapshot
        self.base_index, self.base_term = (snapshot.index, snapshot.term) if snapshot else (0, 0)
        kept = list(entries)
        if kept and kept[-1].index < self.base_index:
            kept = []  # all of it is in the snapshot
        if kept and kept[0].index <= self.base_index:
            # Entries kept for slow followers below the snapshot. The first one stands for what was before it.
            self.base_index, self.base_term = kept[0].index, kept[0].term
            del kept[0]
        if not follow_on(kept, previous_index=self.base_index, previous_term=self.base_term):
            raise InvariantViolated(f"recovered entries do not follow ({self.base_index}, {self.base_term}) in order")
        self._entries: list[Entry] = []
        self._ends = [0]
        """Payload bytes up to each entry's beginning, counted from any origin, and up to the end of the last."""
        self._extend(kept)
        if snapshot is not None and self.term(snapshot.index) != snapshot.term:
            raise InvariantViolated(f"recovered log disagrees with its snapshot at index {snapshot.index}")
        self._membership = membership
        if snapshot is not None:
            membership.restored(snapshot.index, snapshot.configuration)
        self._follow_configurations(kept, above=self.snapshot_index)
        self._install: SnapshotMeta | None = None
        self.issued = self.flushed = self.last_index
        self.unloaded = max((entry.index for entry in kept if entry.stored_bytes), default=self.base_index)
        """Payload of commands up to here is not in memory."""
        self._writing: deque[_Batch] = deque()

    # --- reading ----------------------------------------------------------------------------------------------------

    @property
    def first_index(self) -> int:
        return self.base_index + 1

    @property
    def last_index(self) -> int:
        return self.base_index + len(self._entries)

    @property
    def last_term(self) -> int:
        return self._entries[-1].term if self._entries else self.base_term

    @property
    def snapshot_index(self) -> int:
        return self.snapshot.index if self.snapshot else 0

    def term(self, index: int) -> int | None:
        """Term of the entry at `index`; None where it is not known any more or not yet."""
        offset = index - self.base_index
        if 0 < offset <= len(self._entries):
            return self._entries[offset - 1].term
        return self.base_term if offset == 0 else None

    def entry(self, index: int) -> Entry | None:
        offset = index - self.base_index
        return self._entries[offset - 1] if 0 < offset <= len(self._entries) else None

    def slice(
        self, first: int, *, last: int | None = None, bytes_max: int, at_least_one: bool = True
    ) -> tuple[Entry, ...]:
        """Entries from `first` up to `last` (default: the end), at most `ENTRIES_MAX`, and `bytes_max` of payload.
        `first` must not be compacted away. Costs a copy of what is returned."""
        start = first - self.base_index - 1
        if start < 0:
            raise InvariantViolated(f"entry {first} was asked for, the log begins at {self.first_index}")
        entries, ends = self._entries, self._ends
        limit = len(entries) if last is None else min(len(entries), last - self.base_index)
        limit = min(limit, start + ENTRIES_MAX)
        if start >= limit:
            return ()
        stop = bisect_right(ends, ends[start] + bytes_max, start + 1, limit + 1) - 1
        return tuple(entries[start : max(stop, start + at_least_one)])

    def bytes_above(self, index: int) -> int:
        """Payload bytes of all entries above `index`."""
        return self._ends[-1] - self._ends[min(max(0, index - self.base_index), len(self._entries))]

    def before_newest(self, bytes_max: int) -> int:
        """The index above which entries of at most so many payload bytes stand."""
        return self.base_index + bisect_left(self._ends, self._ends[-1] - bytes_max)

    def start_of_term(self, term: int) -> int:
        """Index of the first entry kept whose term is at least `term`; one past the end when there is none."""
        return self.first_index + bisect_left(self._entries, term, key=_term)

    # --- writing ----------------------------------------------------------------------------------------------------

    def append(self, entry: Entry) -> None:
        """Add a leader's own entry at the end."""
        if entry.index != self.last_index + 1 or entry.term < self.last_term:
            raise InvariantViolated(
                f"entry ({entry.term}, {entry.index}) can't follow ({self.last_term}, {self.last_index})"
            )
        self._entries.append(entry)
        self._ends.append(self._ends[-1] + size_of(entry))
        if entry.kind is EntryKind.CONFIGURATION:
            self._membership.appended(entry)

    def merge(self, entries: Sequence[Entry], *, commit_index: int) -> None:
        """Take entries of the current leader whose predecessor this log holds. What is there already stays, and so does
        what lies behind it: only an entry of another term at the same index removes anything (Raft section 5.3)."""
        new = self._first_new(entries)
        if new == len(entries):
            return
        if entries[new].index <= self.last_index:
            self._truncate(entries[new].index, commit_index=commit_index)
        self._extend(entries[new:])
        self._follow_configurations(entries[new:])

    def _extend(self, entries: Sequence[Entry]) -> None:
        self._entries.extend(entries)
        self._ends.extend(accumulate(map(size_of, entries), initial=self._ends.pop()))

    def _follow_configurations(self, entries: Sequence[Entry], *, above: int = 0) -> None:
        """What was appended takes effect at once, committed or not (HAZARDS 19)."""
        for entry in entries:
            if entry.kind is EntryKind.CONFIGURATION and entry.index > above:
                self._membership.appended(entry)

    def _first_new(self, entries: Sequence[Entry]) -> int:
        """Position of the first entry that this log does not hold (HAZARDS 2)."""
        for position, entry in enumerate(entries):
            if self.term(entry.index) != entry.term:
                return position
        return len(entries)

    def _truncate(self, index: int, *, commit_index: int) -> None:
        """Forget the entries at and above `index`."""
        if index <= commit_index:
            raise InvariantViolated(f"the leader's log disagrees at {index}, which is committed (up to {commit_index})")
        del self._entries[index - self.base_index - 1 :]
        del self._ends[index - self.base_index :]
        self.issued = min(self.issued, index - 1)
        self.flushed = min(self.flushed, index - 1)
        self.unloaded = min(self.unloaded, index - 1)
        self._clip_writing(index - 1)
        self._membership.truncated(index - 1)

    def _clip_writing(self, last_index: int) -> None:
        """Batches being written no longer speak of anything above `last_index` (HAZARDS 5)."""
        for batch in self._writing:
            batch.last_index = min(batch.last_index, last_index)

    def restore(self, meta: SnapshotMeta, *, commit_index: int) -> None:
        """Replace the whole log by a snapshot. It counts as durable once its batch is."""
        # What is committed is surely part of the snapshot; what lies above may be another history.
        self.flushed = min(self.flushed, commit_index)
        self._clip_writing(commit_index)
        self._entries, self._ends = [], [0]
        self.base_index, self.base_term = meta.index, meta.term
        self.snapshot = self._install = meta
        self.issued = self.unloaded = meta.index
        self._membership.restored(meta.index, meta.configuration)

    def compact(self, meta: SnapshotMeta, *, keep_from: int) -> None:
        """A durable snapshot replaces the entries below `keep_from` (at most meta.index + 1)."""
        if keep_from > meta.index + 1 or self.term(meta.index) != meta.term:
            raise InvariantViolated(f"snapshot ({meta.term}, {meta.index}) does not fit the log, keep from {keep_from}")
        self.snapshot = meta
        base = max(keep_from - 1, self.base_index)
        term = self.term(base)
        if term is None:
            raise InvariantViolated(f"log can't be kept from {keep_from}: it ends at {self.last_index}")
        self._check_configuration(meta)
        self._membership.compacted(meta.index)
        del self._entries[: base - self.base_index]
        del self._ends[: base - self.base_index]
        self.base_index, self.base_term = base, term

    def _check_configuration(self, meta: SnapshotMeta) -> None:
        """A snapshot carries the configuration in force at its index, not a later or an earlier one (HAZARDS 20)."""
        found = self._membership.at(meta.index)
        if encode_configuration(meta.configuration) != encode_configuration(found):
            raise InvariantViolated(
                f"snapshot at {meta.index} names configuration {meta.configuration}, the log says {found}"
            )

    # --- memory -----------------------------------------------------------------------------------------------------

    def unload(self, up_to: int) -> None:
        """Leave the payload of commands up to there, as far as they are durable, to the host's log. Configurations
        stay: membership follows them."""
        up_to, entries, base = min(up_to, self.flushed), self._entries, self.base_index
        for position in range(max(0, self.unloaded - base), up_to - base):
            entries[position] = entries[position].left_out()
        self.unloaded = max(self.unloaded, up_to)

    # --- durability -------------------------------------------------------------------------------------------------

    def unissued(self) -> bool:
        """Whether there is anything to write."""
        return self.issued < self.last_index or self._install is not None

    def issue(self, number: int, *, bytes_max: int) -> tuple[SnapshotMeta | None, tuple[Entry, ...]]:
        """Hand out what is to be written under this batch number: a snapshot's meta and entries."""
        install, self._install = self._install, None
        entries: tuple[Entry, ...] = ()
        if self.issued < self.last_index:
            entries = self.slice(self.issued + 1, bytes_max=bytes_max)
            self.issued = entries[-1].index
        if install is not None or entries:
            self._writing.append(_Batch(number, self.issued))
        return install, entries

    def durable(self, number: int) -> None:
        """All batches up to `number` are durable."""
        while self._writing and self._writing[0].number <= number:
            self.flushed = max(self.flushed, self._writing.popleft().last_index)
