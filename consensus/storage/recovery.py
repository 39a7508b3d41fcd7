"""Reading the log back: which segments count, where it ends, and what was lost (RULES W2-W4).

Owns the reading side of the log. Invariants: nothing is written or removed here; a bad batch that something written
later calls durable is damage and is reported, by group where the batch's index tells, else for every group that it may
have held; any other bad batch is a torn tail, and the log ends before it. Must not know: how the log goes on.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field, replace

from consensus.core.interface import Entry, EntryKind, GroupId
from consensus.storage.batches import (
    BATCH_BODY,
    BadBatch,
    Batch,
    Evidence,
    find_batch,
    gather_evidence,
    read_batch,
)
from consensus.storage.checksum import crc32c
from consensus.storage.errors import IdentityMismatch, LogLost, StorageFailed, UnknownFormat
from consensus.storage.interface import FileSystem, Identity
from consensus.storage.records import HEADER_BYTES, Header, Kind, decode_header, find_headers, payload_of
from consensus.storage.replay import REPLACE, GroupReplay, Position
from consensus.storage.salvage import Lost, salvage_batch
from consensus.storage.segments import segment_numbers, segment_path
from consensus.storage.tables import (
    Head,
    HeadFlag,
    Mark,
    SegmentRow,
    decode_creation,
    decode_hard_state,
    decode_head,
    decode_meta,
)

HEAD_OFFSET = HEADER_BYTES + BATCH_BODY.size
"""A HEAD record is always the first of its segment's first batch, and its last one too: one bad place never costs the
table."""


@dataclass(slots=True)
class Recovered:
    """What the log folder holds. `next_batch` and `next_segment` are above every number seen, discarded ones included.
    `unused` are segment files that are no part of the log."""

    groups: dict[GroupId, GroupReplay] = field(default_factory=dict)
    segments: list[SegmentRow] = field(default_factory=list)
    capacities: dict[int, int] = field(default_factory=dict)
    unused: list[int] = field(default_factory=list)
    tombstones: set[tuple[GroupId, int]] = field(default_factory=set)
    incarnation: int = 0
    next_batch: int = 1
    next_segment: int = 1
    discarded_tail_bytes: int = 0
    head: Head | None = None
    """Of the newest segment."""
    damage: str = ""
    """Batches were lost of which not even the groups are known; groups that no later table lists may have been hit."""
    damage_known: bool = False
    """An earlier start found that, and its table says so."""
    warnings: list[str] = field(default_factory=list)
    damaged: set[int] = field(default_factory=set)
    """Segments with a bad place; what is live in them moves to a new one."""

    def durable(self, place: Position) -> bool:
        """Whether the entry lies in a batch that was known durable when its writer ended."""
        return any(row.number == place.segment and place.batch <= row.durable_batch for row in self.segments)


@dataclass(frozen=True, slots=True)
class _Newest:
    """A segment with a head that verifies, and its first batch's number."""

    number: int
    batch: int
    head: Head
    data: bytes = b""


class Reader:
    """Reads one log folder once."""

    def __init__(self, filesystem: FileSystem, directory: str, identity: Identity | None) -> None:
        self._filesystem = filesystem
        self._directory = directory
        self._identity = identity
        self._out = Recovered()
        self._stray = Evidence()
        self._node = 0
        self._lost_at = ""
        """The last batch of which nothing is known, when no table was read since."""

    def read(self) -> Recovered:
        out = self._out
        numbers = segment_numbers(self._filesystem, self._directory)
        out.next_segment = max(numbers, default=0) + 1
        newest = self._newest(numbers)
        listed = newest.head.segments if newest is not None else ()
        self._gather(set(numbers) - {row.number for row in listed} - {newest.number if newest is not None else 0})
        if newest is None:
            out.unused = numbers
            self._judge_headless()
            return out
        out.head, out.incarnation = newest.head, newest.head.incarnation
        self._node = newest.head.node
        out.next_segment = max(out.next_segment, newest.head.next_segment)
        for row in listed:
            out.next_batch = max(out.next_batch, row.last_batch + 1)
            if row.number in numbers:
                self._read_older(row)
        self._read_newest(newest)
        retained = {row.number for row in out.segments}
        out.unused = [each for each in numbers if each not in retained]
        for group in out.groups.values():
            group.finish()
        return out

    # --- finding the newest segment ------------------------------------------------------------------------------

    def _newest(self, numbers: list[int]) -> _Newest | None:
        """The segment whose first batch has the highest number, of those whose first batch counts. File numbers don't
        tell: a spare may wait while a file with a higher number is used."""
        heads = [head for head in map(self._head, numbers) if head is not None]
        for found in sorted(heads, key=lambda head: head.batch, reverse=True):
            data = self._load(found.number)
            whole = isinstance(self._next(data, 0, found.number, found.batch), Batch)
            # A first batch that is not whole was torn, and the segment never began, unless it was durable.
            if whole or gather_evidence(data, 0, found.number).durable >= found.batch:
                return replace(found, data=data)
        return None

    def _head(self, number: int) -> _Newest | None:
        file = self._filesystem.open(segment_path(self._directory, number))
        try:
            data = file.pread(HEAD_OFFSET + HEADER_BYTES, 0)
            header = decode_header(data, HEAD_OFFSET, number)
            payload = file.pread(header.length, header.payload_offset) if header is not None else b""
        finally:
            file.close()
        if header is None or header.kind is not Kind.HEAD or crc32c(payload) != header.crc:
            data = self._load(number)
            header = next((each for each in find_headers(data, 0, number) if _is_head(data, each)), None)
            if header is None:
                return None
            payload = data[header.payload_offset : header.end]
        try:
            head = decode_head(payload)
        except ValueError as error:
            raise UnknownFormat(f"head of segment {header.segment}: {error}") from error
        self._check_identity(head)
        return _Newest(number, header.batch, head)

    def _check_identity(self, head: Head) -> None:
        mine = self._identity
        if mine is not None and (head.cluster, head.node, head.node_uuid) != (mine.cluster, mine.node, mine.node_uuid):
            raise IdentityMismatch(
                f"the log in {self._directory!r} belongs to node {head.node} (uuid {head.node_uuid.hex()}) of cluster "
                f"{head.cluster.hex()}, not to node {mine.node} (uuid {mine.node_uuid.hex()}) of cluster "
                f"{mine.cluster.hex()}; start this node on its own folder"
            )

    def _gather(self, numbers: set[int]) -> None:
        """What files that are no part of the log say: spares, retired ones, torn beginnings."""
        for number in sorted(numbers):
            evidence = gather_evidence(self._load(number), 0, number)
            self._stray = Evidence(
                durable=max(self._stray.durable, evidence.durable), batch=max(self._stray.batch, evidence.batch)
            )
        self._out.next_batch = max(self._out.next_batch, self._stray.batch + 1)

    def _judge_headless(self) -> None:
        """Without any good head the folder is a new one, unless a file says that something in it was durable."""
        if self._stray.durable:
            raise LogLost(
                f"the log in {self._directory!r} is lost: no segment has a head that verifies, though batch "
                f"{self._stray.durable} was known durable; restore the folder, or replace this node (paramserver node "
                "replace)"
            )

    # --- reading segments ----------------------------------------------------------------------------------------

    def _read_older(self, row: SegmentRow) -> None:
        """A segment whose end a later head tells."""
        data = self._load(row.number)
        self._out.capacities[row.number] = len(data)
        offset, expected = 0, row.first_batch
        while expected <= row.last_batch:
            try:
                batch = read_batch(data, offset, row.number, expected)
            except BadBatch as error:
                if expected > row.durable_batch:
                    break  # Never known durable; what counted of it was copied when the next life began.
                offset, expected = self._damaged(data, offset, row.number, expected, str(error), end=row.end)
                if not expected:
                    break
            else:
                self._replay(data, batch.headers)
                offset, expected = batch.end, expected + 1
        self._out.segments.append(row)

    def _read_newest(self, newest: _Newest) -> None:
        number, first = newest.number, newest.batch
        data = newest.data
        self._out.capacities[number] = len(data)
        offset, expected, last, durable = 0, first, first, 0
        while expected:
            batch = self._next(data, offset, number, expected)
            if isinstance(batch, Batch):
                durable = max(durable, batch.durable)
                self._replay(data, batch.headers)
                offset, last, expected = batch.end, expected, expected + 1
            else:
                evidence = gather_evidence(data, offset, number)
                later = max(evidence.durable, self._stray.durable)
                if later < expected:
                    self._out.discarded_tail_bytes = max(0, evidence.end - offset)
                    self._out.next_batch = max(self._out.next_batch, evidence.batch + 1)
                    break
                durable = max(durable, later)
                last = expected
                offset, expected = self._damaged(data, offset, number, expected, batch, end=len(data))
                if last == first:
                    self._table(newest.head, f"the head of segment {number}")
                if not expected:
                    last = max(last, later)
        self._out.next_batch = max(self._out.next_batch, last + 1)
        self._out.segments.append(SegmentRow(number, offset, first, last, min(durable, last)))

    def _next(self, data: bytes, offset: int, number: int, expected: int) -> Batch | str:
        try:
            return read_batch(data, offset, number, expected)
        except BadBatch as error:
            return str(error)

    def _damaged(
        self, data: bytes, offset: int, number: int, expected: int, problem: str, *, end: int
    ) -> tuple[int, int]:
        """A durable batch does not verify: replay what is left, note what is lost. Returns where to go on, and with
        which batch; no batch when nothing of the segment can be read any more."""
        where = f"segment {number} offset {offset}: batch {expected}: {problem}"
        self._out.warnings.append(where)
        self._out.damaged.add(number)
        salvage = salvage_batch(data, offset, number, expected)
        if salvage is not None:
            self._replay(data, salvage.items)
            return salvage.end, expected + 1
        where += "; its index does not verify either, so any group may be hit"
        self._out.damage_known = False
        self._out.damage = f"{where}; {REPLACE.replace('its replica', 'every replica of this node')}"
        self._lost_at = f"segment {number} offset {offset}"
        for group in self._out.groups.values():
            group.lost_anything(self._lost_at)
        return find_batch(data[:end], offset, number, above=expected)

    # --- replaying -----------------------------------------------------------------------------------------------

    def _group(self, group: GroupId, *, begins: bool = False) -> GroupReplay:
        """One that is first met behind a batch of which nothing is known may have begun in that batch, with a term and
        a vote, unless it begins here."""
        found = self._out.groups.get(group)
        if found is None:
            found = self._out.groups[group] = GroupReplay(group)
            if self._lost_at and not begins:
                found.lost_anything(self._lost_at)
        return found

    def _replay(self, data: bytes, items: tuple[Header, ...] | tuple[Header | Lost, ...]) -> None:
        for item in items:
            if isinstance(item, Lost):
                if item.kind is Kind.TOMBSTONE:
                    self._deleted(item.group, item.first)
                elif item.kind is not Kind.HEAD:
                    self._group(item.group).lost(item)
                continue
            payload = memoryview(data)[item.payload_offset : item.end]
            if item.kind is Kind.HEAD:
                self._table(decode_head(payload), f"the head of segment {item.segment}")
            elif item.kind is Kind.TOMBSTONE:
                self._deleted(item.group, item.index)
            elif item.kind is Kind.CREATE:
                self._group(item.group, begins=True).created(decode_creation(payload))
            elif item.kind is Kind.MARK:
                self._group(item.group).marked(Mark(item.detail))
            elif item.kind is Kind.HARD_STATE:
                self._group(item.group).took_hard_state(decode_hard_state(payload))
            elif item.kind is Kind.SNAPSHOT:
                self._group(item.group).took_snapshot(decode_meta(payload), keeps_above=item.detail == 1)
            elif item.kind in (Kind.ENTRY, Kind.COPY):
                self._group(item.group).record(item)

    def _table(self, head: Head, where: str) -> None:
        """A table lists all groups there were when it was written, with all that must not be forgotten."""
        self._out.incarnation = max(self._out.incarnation, head.incarnation)
        self._out.tombstones = set(head.tombstones)
        self._lost_at = ""
        self._out.damage, self._out.damage_known = "", HeadFlag.UNKNOWN_LOST in head.flags
        if HeadFlag.UNKNOWN_LOST in head.flags:
            self._out.damage = f"an earlier start found damage that may have hit any group of this node; {REPLACE}"
        listed = {row.group for row in head.groups}
        for gone in self._out.groups.keys() - listed:
            del self._out.groups[gone]
        for row in head.groups:
            self._group(row.group).table(row, where)

    def _deleted(self, group: GroupId, replica: int) -> None:
        found = self._out.groups.get(group)
        if found is not None and replica == (found.replica or self._node):
            del self._out.groups[group]
        self._out.tombstones.add((group, replica))

    def _load(self, number: int) -> bytes:
        file = self._filesystem.open(segment_path(self._directory, number))
        try:
            return file.pread(file.size(), 0)
        finally:
            file.close()


def _is_head(data: bytes, header: Header) -> bool:
    return header.kind is Kind.HEAD and payload_of(data, header) is not None


def read_log(filesystem: FileSystem, directory: str, identity: Identity | None) -> Recovered:
    """Read the whole log, of that owner if one is named. Raises `IdentityMismatch`, `UnknownFormat`, `LogLost`,
    `StorageFailed`."""
    try:
        return Reader(filesystem, directory, identity).read()
    except OSError as error:
        raise StorageFailed(f"reading the log in {directory}: {error}") from error


def load_entries(
    filesystem: FileSystem, directory: str, places: list[tuple[int, Position]], wanted: Container[int]
) -> list[Entry]:
    """Second pass: the payloads of live entries that are wanted, each checked again, so that segments need not stay in
    memory. Commands that are not wanted are left in the log."""
    entries: list[Entry] = []
    files = {}
    try:
        for number in {place.segment for _, place in places}:
            files[number] = filesystem.open(segment_path(directory, number))
        for index, place in places:
            if place.length and place.kind is EntryKind.NORMAL and index not in wanted:
                entries.append(Entry(place.term, index, place.kind, b"", place.crc, place.length))
                continue
            payload = files[place.segment].pread(place.length, place.offset)
            if len(payload) != place.length or crc32c(payload) != place.crc:
                raise StorageFailed(f"entry {index} in segment {place.segment} reads differently the second time")
            entries.append(Entry(place.term, index, place.kind, payload, place.crc))
    except OSError as error:
        raise StorageFailed(f"reading the log in {directory}: {error}") from error
    finally:
        for file in files.values():
            file.close()
    return entries
