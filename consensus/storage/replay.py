"""What a group's records add up to, read in the order in which they were written (RULES W4).

Owns the rules of superseding. Invariants: an ENTRY supersedes everything at or above its index, a COPY only fills its
own place, a SNAPSHOT everything at or below its index and, unless its record says that the log held its (index, term),
everything above too; what is lost stays a hole until something later supersedes it, and a hole that is left is damage.
Must not know: files, batches.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from consensus.core.interface import EntryKind, GroupId, HardState, SnapshotMeta
from consensus.storage.records import Header, Kind
from consensus.storage.salvage import Lost
from consensus.storage.tables import NO_MARKS, GroupRow, Mark


@dataclass(frozen=True, slots=True)
class Position:
    """Where an entry's payload lies. `batch` is the batch that holds it."""

    term: int
    kind: EntryKind
    segment: int
    offset: int
    length: int
    crc: int
    batch: int


@dataclass(frozen=True, slots=True)
class Hole:
    """A durable entry that can't be read, and where it was."""

    where: str


@dataclass(slots=True)
class GroupReplay:
    """One group's state while the log is read."""

    group: GroupId
    hard_state: HardState = field(default_factory=HardState)
    snapshot: SnapshotMeta | None = None
    marks: Mark = NO_MARKS
    log: dict[int, Position | Hole] = field(default_factory=dict)
    last: int = 0
    lost_hard_state: str = ""
    lost_snapshot: str = ""
    damage: str = ""
    """Once finished: one line that says what is missing, or empty."""

    def table(self, row: GroupRow, where: str) -> None:
        """The table of a later segment: what it says holds, and what it does not list as live is not."""
        self.hard_state, self.snapshot, self.marks = row.hard_state, row.snapshot, row.marks
        self.lost_hard_state = self.lost_snapshot = ""
        self._drop_from(row.last_index + 1)
        self._drop_below(row.first_index)
        if row.first_index > row.last_index:
            return
        for index in range(row.first_index, row.last_index + 1):
            if index not in self.log:
                self.log[index] = Hole(f"not found before {where}, which lists it")
        last = self.log[row.last_index]
        if isinstance(last, Position) and last.term != row.last_term:
            self.log[row.last_index] = Hole(f"of another term than {where} lists")
        self.last = max(self.last, row.last_index)

    def record(self, header: Header) -> None:
        """ENTRY or COPY."""
        place = Position(
            header.term,
            EntryKind(header.detail),
            header.segment,
            header.payload_offset,
            header.length,
            header.crc,
            header.batch,
        )
        if header.kind is Kind.ENTRY:
            self._drop_from(header.index)
        self._put(header.index, place)

    def took_hard_state(self, state: HardState) -> None:
        self.hard_state, self.lost_hard_state = state, ""

    def took_snapshot(self, meta: SnapshotMeta, *, keeps_above: bool) -> None:
        if self.snapshot is not None and meta.index < self.snapshot.index:
            return  # Overtaken by a newer one.
        self.snapshot, self.lost_snapshot = meta, ""
        if keeps_above:
            self._drop_below(meta.index + 1)
        else:
            self._drop_from(0)

    def lost(self, lost: Lost) -> None:
        where = f"segment {lost.segment} offset {lost.offset}"
        if lost.kind is Kind.HARD_STATE:
            self.lost_hard_state = where
        elif lost.kind is Kind.SNAPSHOT:
            self.lost_snapshot = where
        else:
            if lost.kind is Kind.ENTRY:
                self._drop_from(lost.first)
            for index in range(lost.first, lost.last + 1):
                self._put(index, Hole(where))

    def finish(self) -> None:
        """The log is read: what the snapshot covers is not needed, what is missing is damage."""
        if self.snapshot is not None:
            self._drop_below(self.snapshot.index + 1)
        self.damage = self._damage()
        if self.damage:
            self.marks |= Mark.DAMAGED

    def _damage(self) -> str:
        problems = []
        if Mark.DAMAGED in self.marks:
            problems.append("marked damaged by an earlier start")
        if self.lost_hard_state:
            problems.append(f"its term and vote are damaged ({self.lost_hard_state})")
        if self.lost_snapshot:
            problems.append(f"a snapshot's record is damaged ({self.lost_snapshot})")
        holes = [index for index in sorted(self.log) if isinstance(self.log[index], Hole)]
        if holes:
            first = self.log[holes[0]]
            where = first.where if isinstance(first, Hole) else ""
            problems.append(f"{len(holes)} log entries from index {holes[0]} on are damaged or missing ({where})")
        elif self.log and self._gap():
            problems.append(f"log entries before index {self._gap()} are missing")
        return f"group {self.group}: " + "; ".join(problems) if problems else ""

    def prefix(self) -> list[tuple[int, Position]]:
        """Entries that follow the snapshot (or start at the lowest index) without a gap."""
        found: list[tuple[int, Position]] = []
        index = self.snapshot.index + 1 if self.snapshot is not None else min(self.log, default=1)
        while isinstance(place := self.log.get(index), Position):
            found.append((index, place))
            index += 1
        return found

    def _gap(self) -> int:
        """The index before which one is missing; 0 when there is no gap."""
        expected = self.snapshot.index + 1 if self.snapshot is not None else 1
        for index in sorted(self.log):
            if index != expected:
                return index
            expected += 1
        return 0

    def _put(self, index: int, place: Position | Hole) -> None:
        self.log[index] = place
        self.last = max(self.last, index)

    def _drop_from(self, index: int) -> None:
        if self.last - index > len(self.log):
            for held in [held for held in self.log if held >= index]:
                del self.log[held]
        else:
            for held in range(index, self.last + 1):
                self.log.pop(held, None)
        self.last = max(0, min(self.last, index - 1))

    def _drop_below(self, index: int) -> None:
        for held in [held for held in self.log if held < index]:
            del self.log[held]
