"""Which entries of a group are live, and in which segments they lie, while the log is written.

Owns the small table behind recycling, the segment heads and reading back. Invariants: live entries are consecutive, and
there is a place for each; entries go only after a durable snapshot record covers them (HAZARDS 24); an append leaves no
gap. Must not know: files.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from operator import attrgetter

from consensus.core.errors import InvariantViolated
from consensus.core.interface import GroupId, HardState, SnapshotMeta
from consensus.storage.interface import Creation
from consensus.storage.tables import NO_MARKS, GroupRow, Mark

_first = attrgetter("first")


@dataclass(frozen=True, slots=True)
class Run:
    """Entries [first, last] of one term in one segment. `size_bytes` in the log; roughly, when some were superseded."""

    first: int
    last: int
    term: int
    segment: int
    size_bytes: int = 0

    def cut(self, first: int, last: int) -> Run:
        """The part [first, last] of it."""
        share = (last - first + 1) / (self.last - self.first + 1)
        return Run(first, last, self.term, self.segment, round(self.size_bytes * share))


@dataclass(slots=True)
class LiveLog:
    """One group, as of the last record written."""

    group: GroupId
    hard_state: HardState = field(default_factory=HardState)
    snapshot: SnapshotMeta | None = None
    durable_snapshot_index: int = 0
    marks: Mark = NO_MARKS
    create: Creation | None = None
    runs: list[Run] = field(default_factory=list)
    offsets: array[int] = field(default_factory=lambda: array("Q"))
    """Of the payload of each live entry, in its segment."""

    @property
    def last_index(self) -> int:
        if self.runs:
            return self.runs[-1].last
        return self.snapshot.index if self.snapshot is not None else 0

    def holds(self, index: int, term: int) -> bool:
        """Whether the log, its snapshot's boundary included, has an entry of that index and term."""
        if self.snapshot is not None and (self.snapshot.index, self.snapshot.term) == (index, term):
            return True
        return any(run.first <= index <= run.last and run.term == term for run in self.runs)

    def place(self, index: int, term: int) -> tuple[int, int] | None:
        """(segment, offset of the payload) of that entry; None when it is not live."""
        at = bisect_right(self.runs, index, key=_first) - 1
        if at < 0 or index > self.runs[at].last or self.runs[at].term != term:
            return None
        return self.runs[at].segment, self.offsets[index - self.runs[0].first]

    def append(self, first: int, last: int, term: int, segment: int, size_bytes: int, offsets: Iterable[int]) -> None:
        """A run of ENTRY records was written: it supersedes what is at or above `first`. Raises `InvariantViolated` on
        a gap."""
        if first > self.last_index + 1:
            raise InvariantViolated(f"group {self.group}: entry {first} after {self.last_index} leaves a gap")
        if self.snapshot is not None and first <= self.snapshot.index:
            raise InvariantViolated(f"group {self.group}: entry {first} lies below snapshot {self.snapshot.index}")
        if self.runs:
            del self.offsets[max(0, first - self.runs[0].first) :]
        while self.runs and self.runs[-1].last >= first:
            run = self.runs.pop()
            if run.first < first:
                self.runs.append(run.cut(run.first, first - 1))
        self.extend(first, last, term, segment, size_bytes, offsets)

    def extend(self, first: int, last: int, term: int, segment: int, size_bytes: int, offsets: Iterable[int]) -> None:
        """The entries [first, last] follow the last one."""
        self.offsets.extend(offsets)
        self._extend(first, last, term, segment, size_bytes)

    def _extend(self, first: int, last: int, term: int, segment: int, size_bytes: int) -> None:
        run = self.runs[-1] if self.runs else None
        if run is not None and (run.last + 1, run.term, run.segment) == (first, term, segment):
            self.runs[-1] = Run(run.first, last, term, segment, run.size_bytes + size_bytes)
        else:
            self.runs.append(Run(first, last, term, segment, size_bytes))

    def lies_in(self, index: int, term: int, segment: int) -> bool:
        """Whether that entry is live, and there."""
        return any(run.first <= index <= run.last and (run.term, run.segment) == (term, segment) for run in self.runs)

    def move(self, index: int, segment: int, size_bytes: int, offset: int) -> None:
        """A COPY of that live entry is written to another segment."""
        self.offsets[index - self.runs[0].first] = offset
        runs, self.runs = self.runs, []
        for run in runs:
            if not run.first <= index <= run.last:
                self.runs.append(run)
                continue
            if run.first < index:
                self.runs.append(run.cut(run.first, index - 1))
            self._extend(index, index, run.term, segment, size_bytes)
            if index < run.last:
                self.runs.append(run.cut(index + 1, run.last))

    def install(self, meta: SnapshotMeta) -> bool:
        """A SNAPSHOT record is written; tells whether entries above it stay. One that a newer snapshot overtook on its
        way here changes nothing."""
        if self.snapshot is not None and meta.index < self.snapshot.index:
            return True
        keeps = self.holds(meta.index, meta.term)
        self.snapshot = meta
        if not keeps:
            self._drop_all()
        return keeps

    def mark(self, marks: Mark) -> None:
        """A MARK is written; one that begins forgetfulness drops the log (RULES W7)."""
        self.marks = marks
        if Mark.FORGETFUL in marks:
            self.snapshot = None
            self.durable_snapshot_index = 0
            self.hard_state = replace(self.hard_state, commit=0)
            self._drop_all()

    def _drop_all(self) -> None:
        self.runs.clear()
        del self.offsets[:]

    def release(self, below: int) -> None:
        """Entries below are not live any more, as far as a durable snapshot covers them."""
        below = min(below, self.durable_snapshot_index + 1)
        if self.runs:
            del self.offsets[: max(0, below - self.runs[0].first)]
        while self.runs and self.runs[0].first < below:
            run = self.runs.pop(0)
            if run.last >= below:
                self.runs.insert(0, run.cut(below, run.last))

    def row(self) -> GroupRow:
        first = self.runs[0].first if self.runs else self.last_index + 1
        last_term = self.runs[-1].term if self.runs else self.snapshot.term if self.snapshot is not None else 0
        live = (first, self.last_index, last_term)
        return GroupRow(self.group, self.marks, self.hard_state, *live, self.snapshot, self.create)
