"""The log of a node, shared by its groups: one gathered write and one sync commit what all of them appended.

Owns the order of everything that becomes durable. Invariants:

* snapshot records, hard state and entries form one ordered stream (HAZARDS 7);
* `sync` returned means durable; after the first failed write or sync every call raises `StorageFailed` (HAZARDS 22);
* a process never goes on in a segment of an earlier life: what it recovered is written again and synced before `open`
  returns (RULES W3);
* a segment's file is used again only after a later table is durable and no live entry lies in it (RULES W4).

Must not know: threads, messages, what entries mean.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from consensus.core.errors import InvariantViolated
from consensus.core.interface import Entry, EntryKind, GroupId, ReplicaId
from consensus.storage.appending import entry_record, plan_head, records_of, split
from consensus.storage.batches import Plan, encode_batch, payload_offsets, plan_batch
from consensus.storage.checksum import crc32c
from consensus.storage.errors import IdentityMismatch, StorageFailed, StorageFull
from consensus.storage.interface import FileSystem, GroupAppend, Identity, RecoveredGroup, Recovery
from consensus.storage.live import LiveLog
from consensus.storage.options import WalOptions
from consensus.storage.reading import EntryReader, Place
from consensus.storage.records import HEADER_BYTES, Kind, Record
from consensus.storage.recovery import Recovered, load_entries, read_log
from consensus.storage.replay import GroupReplay, Position
from consensus.storage.rewriting import Rewriting
from consensus.storage.segments import Prepared, SegmentPool
from consensus.storage.tables import (
    NO_FLAGS,
    Head,
    HeadFlag,
    Mark,
    SegmentRow,
    decode_creation,
    decode_hard_state,
    decode_meta,
    encode_head,
)

HEAD_GROWTH_BYTES = 80
"""A head's row of a segment, group or tombstone is at most this long, snapshot and creation of a group apart."""


@dataclass(slots=True)
class _Active:
    """The segment that is being written. `end` in bytes."""

    prepared: Prepared
    first_batch: int
    end: int = 0


class Wal:
    """`LogStore`. Driven by one caller at a time, `prepare` and `load` excepted."""

    def __init__(
        self, filesystem: FileSystem, directory: str, identity: Identity, options: WalOptions, recovered: Recovered
    ) -> None:
        """Use `Wal.open`."""
        self._filesystem = filesystem
        self._directory = directory
        self._identity = identity
        self._options = options
        self._incarnation = recovered.incarnation + 1
        self._tombstones = set(recovered.tombstones)
        self._flags = HeadFlag.UNKNOWN_LOST if recovered.damage else NO_FLAGS
        self._groups: dict[GroupId, LiveLog] = {}
        self._placing = threading.Lock()
        """Held while the places of entries change, until what is there now is written."""
        self._reader = EntryReader(filesystem, directory, self._places)
        self._segments = list(recovered.segments)
        self._capacities = dict(recovered.capacities)
        self._written = recovered.next_batch - 1
        self._durable = max((row.durable_batch for row in self._segments), default=0)
        self._covered = self._durable
        self._last_real = 0
        self._retire_due = True
        self._longest = 0
        """The most segments that held live entries at a time in this life."""
        self._new_snapshots: set[GroupId] = set()
        self._active: _Active | None = None
        self._failed = ""
        self._room = 0
        """Bytes left for commands in the active segment."""
        self._rewriting = Rewriting(
            filesystem, directory, held_max=options.held_segments_max, segment_bytes=options.segment_bytes
        )
        self._pool = SegmentPool(
            filesystem,
            directory,
            segment_bytes=options.segment_bytes,
            reserve_bytes=options.reserve_bytes,
            spares_wanted=options.spare_segments,
            retired_max=options.retired_segments_max,
            next_number=recovered.next_segment,
            unused=recovered.unused,
        )

    @classmethod
    def open(
        cls,
        filesystem: FileSystem,
        directory: str,
        identity: Identity,
        options: WalOptions | None = None,
        *,
        forgotten: str = "",
    ) -> tuple[Wal, Recovery]:
        """Read the log, mark groups of which something is lost (RULES W7), and make all of it durable again.
        `forgotten`: why entries that were acknowledged may be gone, of any group (RULES W8). Raises
        `IdentityMismatch`, `UnknownFormat`, `LogLost`, `StorageFull` (no room for the new segment), `StorageFailed`."""
        options = options or WalOptions()
        options.validate()
        try:
            filesystem.mkdir(directory)
            recovered = read_log(filesystem, directory, identity)
            if identity.activated and recovered.incarnation == 0:
                raise IdentityMismatch(
                    f"the log in {directory} is gone, but this node has taken part in its cluster: without it the node "
                    "could vote twice and forget what it acknowledged; restore the folder, or replace this node "
                    "(paramserver node replace)"
                )
            if forgotten:
                for found in recovered.groups.values():
                    found.forgot(forgotten)
            wal = cls(filesystem, directory, identity, options, recovered)
        except OSError as error:
            raise StorageFailed(f"opening the log in {directory}: {error}") from error
        entries = wal._begin(recovered)
        groups = {
            number: RecoveredGroup(
                hard_state=group.hard_state,
                snapshot=group.snapshot,
                entries=tuple(entries[number]),
                damage=group.damage,
                forgetful=Mark.FORGETFUL in group.marks,
                hard_state_lost=Mark.HARD_STATE_LOST in group.marks,
                create=group.create,
            )
            for number, group in sorted(recovered.groups.items())
        }
        return wal, Recovery(
            incarnation=wal._incarnation,
            groups=groups,
            damage=recovered.damage,
            discarded_tail_bytes=recovered.discarded_tail_bytes,
            tombstones=tuple(sorted(recovered.tombstones)),
            warnings=tuple(recovered.warnings),
        )

    # --- what the host calls -------------------------------------------------------------------------------------

    def write(self, appends: Sequence[GroupAppend]) -> None:
        """Write everything, not yet durable: one batch, or several when it is over `flush_bytes_max`. Raises
        `StorageFull` before anything was written, `StorageFailed` otherwise; `InvariantViolated` for a gap in a group's
        entries or a payload that does not match its CRC."""
        records = [record for append in appends for record in records_of(append)]
        if records:
            urgent = all(record.kind is not Kind.ENTRY or record.detail != EntryKind.NORMAL for record in records)
            self._write(list(split(records, self._options.flush_bytes_max)), urgent=urgent)
            self._last_real = self._written
        self._rewrite()

    def sync(self) -> None:
        """What was written is durable when this returns. Raises `StorageFailed`."""
        self._usable()
        if self._written != self._durable:
            self._sync()
        self._retire()

    def release(self, group: GroupId, below_index: int) -> None:
        """Entries of the group below that index are not needed; those that no durable snapshot record covers stay."""
        self._usable()
        if group in self._groups:
            with self._placing:
                self._groups[group].release(below_index)
            self._retire_due = True
            if self._written == self._durable:
                self._retire()

    def load(self, group: GroupId, entries: Sequence[Entry]) -> tuple[Entry, ...] | None:
        """See `LogStore.load`."""
        return self._reader.load(group, entries)

    def _places(self, group: GroupId, entries: Sequence[Entry]) -> list[Place] | None:
        """From any thread."""
        with self._placing:
            log = self._groups.get(group)
            if log is None:
                return None
            places = [log.place(entry.index, entry.term) for entry in entries]
        found = [place for place in places if place is not None]
        return found if len(found) == len(places) else None

    @property
    def unprepared(self) -> bool:
        """See `LogStore.unprepared`."""
        return self._pool.unprepared or self._rewriting.unread

    def prepare(self) -> None:
        """Make spare segments ready, and read what is to be rewritten; see `LogStore.prepare`."""
        if not self._failed:
            self._rewriting.gather()
            self._prepare()

    def idle(self) -> None:
        """Cover the last real batch. What takes long is left to `prepare`: an append may come at any moment."""
        self._usable()
        self._rewrite()
        self._cover()

    def close(self) -> None:
        """Cover the last real batch and close the files; after a failure only the latter."""
        if not self._failed:
            self._cover()
            self._failed = "closed"
        if self._active is not None:
            self._active.prepared.file.close()
            self._active = None
        self._pool.close()

    @property
    def full(self) -> bool:
        """There is no space for another segment: new commands are better refused before they are appended (RULES W5).
        `prepare` looks again."""
        return self._pool.full

    @property
    def exhausted(self) -> bool:
        """It is full, and what is left of the segment being written is kept for what was appended before."""
        return self._pool.full and self._room < self._options.segment_bytes // 2

    @property
    def segment_count(self) -> int:
        """Segments that hold live entries, the one being written included."""
        return len(self._segments) + 1

    # --- writing -------------------------------------------------------------------------------------------------

    def _write(self, plans: list[Plan], *, urgent: bool) -> None:
        active = self._usable()
        places = self._acquire(active, plans, urgent=urgent)
        for plan, prepared in zip(plans, places, strict=True):
            if prepared is not None:
                self._rotate(prepared)
            self._append(plan)

    def _acquire(self, active: _Active, plans: list[Plan], *, urgent: bool) -> list[Prepared | None]:
        """The new segment that each batch needs, if any: all are taken before the first byte is written."""
        room = active.prepared.capacity - active.end if urgent or not active.prepared.reserve else 0
        places: list[Prepared | None] = []
        for plan in plans:
            if plan.length <= room:
                places.append(None)
                room -= plan.length
                continue
            head = self._head_bytes_max(plans)
            try:
                prepared = self._pool.take(head + plan.length, urgent=urgent)
            except StorageFailed as error:
                self._failed = str(error)
                raise
            except StorageFull:
                for taken in reversed(places):
                    if taken is not None:
                        self._pool.give_back(taken)
                raise
            places.append(prepared)
            room = prepared.capacity - head - plan.length
        return places

    def _head_bytes_max(self, plans: list[Plan]) -> int:
        """How long a head written between these batches may be, framing and padding included."""
        now = plan_head(self._head_record()).length
        records = [record for plan in plans for record in plan.records]
        in_rows = [len(record.payload) for record in records if record.kind in (Kind.SNAPSHOT, Kind.CREATE)]
        rows = {(record.group, record.kind is Kind.TOMBSTONE) for record in records}
        growth = HEAD_GROWTH_BYTES * (len(plans) + len(rows)) + sum(in_rows)
        return now + plan_batch([Record(kind=Kind.HEAD, payload=bytes(2 * growth))]).length

    def _rotate(self, prepared: Prepared) -> None:
        """Go on in a new segment. The old one is synced first, so that a head speaks only of durable segments."""
        active = self._usable()
        if self._written != self._durable:
            self._sync()
        self._segments.append(
            SegmentRow(active.prepared.number, active.end, active.first_batch, self._written, self._written)
        )
        self._capacities[active.prepared.number] = active.prepared.capacity
        self._io("closing a segment", active.prepared.file.close)
        self._active = _Active(prepared, self._written + 1)
        self._retire_due = True
        self._append(plan_head(self._head_record()))

    def _append(self, plan: Plan) -> None:
        """Write one batch to the end of the active segment."""
        with self._placing:
            self._append_placing(plan)

    def _append_placing(self, plan: Plan) -> None:
        active = self._usable()
        prepared = active.prepared
        try:
            noted = self._note_all(plan, prepared.number, active.end)
            if noted is not None:
                plan = plan_batch(noted)
            buffers = encode_batch(
                plan, segment=prepared.number, offset=active.end, batch=self._written + 1, durable=self._durable
            )
            if active.end + plan.length > prepared.capacity:
                raise InvariantViolated(f"batch of {plan.length} bytes at {active.end} of {prepared.capacity}")
        except InvariantViolated as error:
            self._failed = str(error)
            raise
        self._io("writing the log", lambda: prepared.file.pwrite(buffers, active.end))
        active.end += plan.length
        self._room = 0 if prepared.reserve else prepared.capacity - active.end
        self._written += 1
        self._covered = self._durable

    def _note_all(self, plan: Plan, segment: int, offset: int) -> list[Record] | None:
        """Keep track of what the records mean for their groups. Returns them anew when one of them was told more."""
        noted: list[Record] | None = None
        places = payload_offsets(plan.records, offset)
        position = 0
        for row in plan.rows:
            count = row.last - row.first + 1
            offsets = list(islice(places, count))
            if row.kind is Kind.ENTRY:
                self._group(row.group).append(row.first, row.last, row.term, segment, row.length, offsets)
            elif row.kind is Kind.COPY:
                group = self._group(row.group)
                for record, at in zip(plan.records[position : position + count], offsets, strict=True):
                    group.move(record.index, segment, HEADER_BYTES + len(record.payload), at)
            elif row.kind is not Kind.HEAD:
                record = plan.records[position]
                after = self._note(record)
                if after is not record:
                    noted = list(plan.records) if noted is None else noted
                    noted[position] = after
            position += count
        return noted

    def _group(self, number: GroupId) -> LiveLog:
        return self._groups.setdefault(number, LiveLog(number))

    def _note(self, record: Record) -> Record:
        """What is no entry; a snapshot's record is told what the log holds."""
        if record.kind is Kind.TOMBSTONE:
            self._bury(record.group, record.index)
            self._tombstones.add((record.group, record.index))
            self._retire_due = True
            return record
        if record.kind is Kind.CREATE:
            self._create(record)
            return record
        group = self._group(record.group)
        if record.kind is Kind.MARK:
            group.mark(Mark(record.detail))
            self._retire_due = True
        elif record.kind is Kind.HARD_STATE:
            group.hard_state = decode_hard_state(record.payload)
        elif record.kind is Kind.SNAPSHOT:
            self._new_snapshots.add(record.group)
            return replace(record, detail=int(group.install(decode_meta(record.payload))))
        return record

    def _bury(self, group: GroupId, replica: ReplicaId) -> None:
        """Its log goes; that of another replica of the group stays. One that names nobody goes with the bootstrap's,
        whose replicas carry their node's id, though damage may hide that it was another's."""
        log = self._groups.get(group)
        if log is not None and replica == (log.create.replica if log.create is not None else self._identity.node):
            del self._groups[group]
            self._new_snapshots.discard(group)

    def _create(self, record: Record) -> None:
        create = decode_creation(record.payload)
        if record.group in self._groups or (record.group, create.replica) in self._tombstones:
            raise InvariantViolated(
                f"replica {create.replica} of group {record.group} can't be made: the group has one here, or that one "
                "was deleted"
            )
        self._groups[record.group] = LiveLog(record.group, create=create)

    def _sync(self) -> None:
        self._datasync()
        self._durable = self._written
        for number in self._new_snapshots:
            group = self._groups[number]
            group.durable_snapshot_index = group.snapshot.index if group.snapshot is not None else 0
        self._new_snapshots.clear()

    def _datasync(self) -> None:
        """One attempt: after a failed sync the kernel drops the pages, and a second one would succeed without them."""
        self._io("syncing the log", self._usable().prepared.file.datasync)

    def _cover(self) -> None:
        """An empty batch says that the last real one is durable: a bad byte in that is damage now (RULES W2)."""
        if self._written != self._durable:
            self._sync()
        if self._last_real <= self._covered or self._usable().prepared.reserve:
            return
        try:
            self._write([plan_batch([])], urgent=True)
        except StorageFull:
            return
        self._sync()
        self._retire()

    def _retire(self) -> None:
        """Give back segments without live entries, once a later table is durable."""
        active = self._usable()
        if not self._retire_due or active.first_batch > self._durable:
            return
        held = {run.segment for group in self._groups.values() for run in group.runs} | {self._rewriting.segment}
        self._longest = max(self._longest, len(self._segments))
        self._pool.retired_useful = self._longest - sum(row.number in held for row in self._segments)
        for row in self._segments:
            if row.number not in held:
                self._pool.retire(row.number, self._capacities.pop(row.number))
        self._segments = [row for row in self._segments if row.number in held]
        self._retire_due = False
        self._rewriting.choose(self._segments, self._groups)

    def _rewrite(self) -> None:
        """Write the live entries of an old segment again, which frees it. A full disk has other worries."""
        gathered = self._rewriting.take()
        if gathered is None:
            return
        self._retire_due = True
        copies = []
        for number, entry in gathered.entries:
            group = self._groups.get(number)
            if group is not None and group.lies_in(entry.index, entry.term, gathered.segment):
                copies.append(entry_record(Kind.COPY, number, entry))
        if not copies:
            return
        try:
            for plan in split(copies, self._options.flush_bytes_max):
                self._write([plan], urgent=False)
                self._last_real = self._written
        except StorageFull:
            return

    def _head_record(self) -> Record:
        payload = encode_head(
            Head(
                cluster=self._identity.cluster,
                node=self._identity.node,
                node_uuid=self._identity.node_uuid,
                incarnation=self._incarnation,
                next_segment=self._pool.next_number,
                flags=self._flags,
                peers=self._identity.peers,
                segments=tuple(self._segments),
                groups=tuple(group.row() for group in self._groups.values()),
                tombstones=tuple(sorted(self._tombstones)),
            )
        )
        return Record(kind=Kind.HEAD, payload=payload, crc=crc32c(payload))

    # --- beginning -----------------------------------------------------------------------------------------------

    def _begin(self, recovered: Recovered) -> dict[GroupId, list[Entry]]:
        """Recovered is not durable: write what may live only in the page cache into a segment of this life (RULES W3).
        A log that is small altogether is copied whole, which frees its old segments; so is what is left in damaged
        ones. The marks of groups that lost something are in the same batch (RULES W7). Returns the groups' entries, the
        newest of them with their payload."""
        places = {number: group.prefix() for number, group in recovered.groups.items()}
        live_bytes = sum(place.length for group in places.values() for _, place in group)
        everything = live_bytes <= self._options.open_copy_bytes_max
        entries: dict[GroupId, list[Entry]] = {}
        copies: list[Record] = []
        copied: set[tuple[GroupId, int]] = set()
        for number, found in places.items():
            again = {
                index
                for index, place in found
                if everything or place.segment in recovered.damaged or not recovered.durable(place)
            }
            newest = _newest(found, self._options.recovered_bytes_max)
            wanted = again.union(index for index, _ in found if index >= newest)
            loaded = load_entries(self._filesystem, self._directory, found, wanted)
            copies += [entry_record(Kind.COPY, number, entry) for entry in loaded if entry.index in again]
            copied |= {(number, index) for index in again}
            entries[number] = [entry if entry.index >= newest else entry.left_out() for entry in loaded]
        for number, group in recovered.groups.items():
            self._groups[number] = _live(group, copied, self._pool.next_number)
        needed = plan_head(self._head_record(), copies).length
        self._pool.prepare()  # Now, so that the reserve can serve a start on a full disk.
        prepared = self._pool.take(needed, urgent=True)
        for number, group in recovered.groups.items():
            self._groups[number] = _live(group, copied, prepared.number)
        self._active = _Active(prepared, self._written + 1)
        self._append(plan_head(self._head_record(), copies))
        self._last_real = self._written
        self._sync()
        self._retire()
        # How long the log of an earlier life was, with what lay between its copies, says nothing of this one.
        self._longest, self._pool.retired_useful = len(self._segments), 0
        self._pool.prepare()
        return entries

    # --- failing -------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        try:
            self._pool.prepare()
        except StorageFailed as error:
            self._failed = str(error)
            raise

    def _usable(self) -> _Active:
        if self._failed or self._active is None:
            raise StorageFailed(f"the log in {self._directory} takes nothing any more: {self._failed or 'closed'}")
        return self._active

    def _io(self, what: str, call: Callable[[], None]) -> None:
        """Run an IO call; the first error is the last thing this log does (HAZARDS 22)."""
        try:
            call()
        except OSError as error:
            self._failed = f"{what}: {error}"
            raise StorageFailed(f"{what} in {self._directory}: {error}") from error


def _newest(found: Sequence[tuple[int, Position]], bytes_max: int) -> int:
    """The index from which on the payloads, up to the last, take at most so many bytes."""
    held = 0
    for index, place in reversed(found):
        held += place.length
        if held > bytes_max:
            return index + 1
    return 0


def _live(group: GroupReplay, copied: set[tuple[GroupId, int]], copy_segment: int) -> LiveLog:
    """A recovered group as it goes on: what could be read, and no hole."""
    live = LiveLog(group.group, group.hard_state, group.snapshot, marks=group.marks, create=group.create)
    live.durable_snapshot_index = group.snapshot.index if group.snapshot is not None else 0
    for index, place in group.prefix():
        # Where a copy will lie is noted when it is written.
        segment = copy_segment if (group.group, index) in copied else place.segment
        live.extend(index, index, place.term, segment, HEADER_BYTES + place.length, (place.offset,))
    return live
