"""What a group's records add up to, read in the order in which they were written (RULES W4, W7).

Owns the rules of superseding, and what is left after a loss. Invariants: an ENTRY supersedes everything at or above its
index, a COPY only fills its own place, a SNAPSHOT everything at or below its index and, unless its record says that the
log held its (index, term), everything above too; what is lost stays a hole until something later supersedes it; with a
hole left the group is marked, and what is kept is a state that its log once had: the snapshot and the entries up to the
first hole. Must not know: files, batches.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from consensus.core.interface import EntryKind, GroupId, HardState, SnapshotMeta
from consensus.storage.interface import Creation
from consensus.storage.records import Header, Kind
from consensus.storage.salvage import Lost
from consensus.storage.tables import NO_MARKS, GroupRow, Mark

REPLACE = "its replica must be replaced (paramserver node replace, or paramserver group move)"


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
    create: Creation | None = None
    log: dict[int, Position | Hole] = field(default_factory=dict)
    last: int = 0
    lost_hard_state: str = ""
    lost_snapshot: str = ""
    lost_create: str = ""
    lost_replica: int = 0
    """Whose `lost_create` is; its batch still tells."""
    uncertain: str = ""
    """Records of any kind may have been lost there: what comes after joins nothing that was there before."""
    damage: str = ""
    """Once finished: one line that says what is missing, or empty."""
    hit: bool = False
    """It was found now, not by an earlier start."""

    def table(self, row: GroupRow, where: str) -> None:
        """The table of a later segment: what it says holds, and what it does not list as live is not."""
        self.hard_state, self.snapshot, self.marks = row.hard_state, row.snapshot, row.marks
        self.create, self.lost_replica = row.create, 0
        self.lost_hard_state = self.lost_snapshot = self.lost_create = self.uncertain = ""
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
        place: Position | Hole = Position(
            header.term,
            EntryKind(header.detail),
            header.segment,
            header.payload_offset,
            header.length,
            header.crc,
            header.batch,
        )
        if self.uncertain:
            # What was lost may have superseded entries below this one, so it can't be joined to them.
            place = Hole(self.uncertain)
        if header.kind is Kind.ENTRY:
            self._drop_from(header.index)
        self._put(header.index, place)

    def created(self, create: Creation) -> None:
        self.create, self.lost_create, self.lost_replica = create, "", 0

    def marked(self, marks: Mark) -> None:
        self.marks = marks
        if Mark.FORGETFUL in marks:
            self.snapshot, self.lost_snapshot, self.uncertain = None, "", ""
            self.hard_state = replace(self.hard_state, commit=0)
            self._drop_from(0)

    def took_hard_state(self, state: HardState) -> None:
        self.hard_state, self.lost_hard_state = state, ""

    def took_snapshot(self, meta: SnapshotMeta, *, keeps_above: bool) -> None:
        if self.snapshot is not None and meta.index < self.snapshot.index:
            return  # Overtaken by a newer one.
        self.snapshot, self.lost_snapshot = meta, ""
        if keeps_above and not self.uncertain:
            self._drop_below(meta.index + 1)
        else:
            self._drop_from(0)
            if not keeps_above:
                self.uncertain = ""
        self.last = max(self.last, meta.index)

    def lost(self, lost: Lost) -> None:
        """A durable record of this group can't be read; its batch still tells what it was."""
        where = f"segment {lost.segment} offset {lost.offset}"
        if lost.kind is Kind.HARD_STATE:
            self.lost_hard_state = where
        elif lost.kind is Kind.CREATE:
            self.lost_create, self.lost_replica = where, lost.first
        elif lost.kind is Kind.MARK:
            self.marked(Mark(lost.detail))
        elif lost.kind is Kind.SNAPSHOT:
            if self.snapshot is not None and lost.first < self.snapshot.index:
                return
            self.lost_snapshot = where
            if lost.detail == 0:
                self._drop_from(0)
                self.last = lost.first
        else:
            if lost.kind is Kind.ENTRY:
                self._drop_from(lost.first)
            for index in range(lost.first, lost.last + 1):
                self._put(index, Hole(where))

    def lost_anything(self, where: str) -> None:
        """A durable batch can't be read at all: any record of this group may have been in it."""
        self.uncertain = self.lost_hard_state = where

    @property
    def replica(self) -> int:
        """That it was made as, its record readable or not; 0: of the bootstrap, or hidden by damage."""
        return self.create.replica if self.create is not None else self.lost_replica

    def finish(self) -> None:
        """The log is read: what the snapshot covers is not needed. What is missing is damage: the group is marked, and
        keeps what is in front of the first hole."""
        if self.snapshot is not None:
            self._drop_below(self.snapshot.index + 1)
        problems = self._problems()
        if problems:
            self.hit = True
            self.marks |= Mark.FORGETFUL
            if self.lost_hard_state or self.lost_create:
                self.marks |= Mark.HARD_STATE_LOST
            if self.lost_snapshot:
                self.snapshot = None
            self.log = dict(self.prefix())
            self.last = max(self.log, default=self.snapshot.index if self.snapshot is not None else 0)
        elif Mark.FORGETFUL in self.marks:
            problems.append("marked by an earlier start")
        if Mark.FORGETFUL in self.marks:
            self.hard_state = replace(self.hard_state, commit=min(self.hard_state.commit, self._end()))
        if Mark.HARD_STATE_LOST in self.marks:
            problems.append(f"its term and vote may be lost, so it must not run under its old id: {REPLACE}")
        self.damage = f"group {self.group}: " + "; ".join(problems) if problems else ""

    def forgot(self, why: str) -> None:
        """Once finished: entries that it acknowledged may be missing at its end, without a trace. Its term and vote are
        not; without a term it has acknowledged nothing."""
        if not self.hard_state.term or Mark.FORGETFUL in self.marks:
            return
        self.hit = True
        self.marks |= Mark.FORGETFUL
        self.hard_state = replace(self.hard_state, commit=min(self.hard_state.commit, self._end()))
        self.damage = f"group {self.group}: {why}"

    def _end(self) -> int:
        return max(self.log, default=self.snapshot.index if self.snapshot is not None else 0)

    def _problems(self) -> list[str]:
        problems = []
        if self.lost_create:
            problems.append(f"the record that made its replica is damaged ({self.lost_create})")
        if self.uncertain:
            problems.append(f"a batch that may have held anything of it is damaged ({self.uncertain})")
        elif self.lost_hard_state:
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
        return problems

    def prefix(self) -> list[tuple[int, Position]]:
        """Entries that follow the snapshot, or begin the log, without a gap."""
        found: list[tuple[int, Position]] = []
        index = self.snapshot.index + 1 if self.snapshot is not None else 1
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
