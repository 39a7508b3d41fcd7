"""Looking at a data folder without its server: what lies there, and whether it verifies.

Owns the pictures of logs, records and snapshot files that people get. Invariant: nothing is written, moved or removed;
the log is judged by the same reader that a start uses. Must not know: command lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from consensus.core.interface import EntryKind, GroupId, SnapshotMeta
from consensus.storage.batches import BadBatch, find_batch, read_batch
from consensus.storage.errors import SnapshotDamaged, StorageError, StorageFailed, UnknownFormat
from consensus.storage.interface import FileSystem, Identity
from consensus.storage.records import Header, Kind
from consensus.storage.recovery import Recovered, read_log
from consensus.storage.segments import is_segment, segment_path
from consensus.storage.snapshots import HALF_WRITTEN, SUFFIX, SnapshotFiles
from consensus.storage.tables import Mark, SegmentRow, decode_hard_state, decode_head, decode_meta

_GROUP_FOLDER = re.compile(r"group-(\d{1,10})")


@dataclass(frozen=True, slots=True)
class Place:
    """Something that is not as it should be, and where. `offset` in bytes; -1: the file as a whole."""

    path: str
    offset: int
    problem: str


@dataclass(frozen=True, slots=True)
class SegmentPicture:
    """`part` of the log: "newest", "older" or "spare" (no part of it)."""

    number: int
    path: str
    part: str
    size_bytes: int
    end: int = 0
    first_batch: int = 0
    last_batch: int = 0
    durable_batch: int = 0


@dataclass(frozen=True, slots=True)
class GroupPicture:
    """Live entries are [first_index, last_index]; none when last_index is below. `replica` 0: of the bootstrap."""

    group: GroupId
    replica: int
    term: int
    vote: int
    commit: int
    snapshot_index: int
    snapshot_term: int
    snapshot_id: str
    first_index: int
    last_index: int
    entry_bytes: int
    forgetful: bool
    hard_state_lost: bool
    damage: str


@dataclass(frozen=True, slots=True)
class LogPicture:
    cluster: str
    node: int
    node_uuid: str
    incarnation: int
    segments: tuple[SegmentPicture, ...]
    groups: tuple[GroupPicture, ...]
    tombstones: tuple[tuple[GroupId, int], ...]
    discarded_tail_bytes: int
    damage: tuple[str, ...]
    """What a start would find damaged now; empty when all that was durable verifies."""
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RecordPicture:
    segment: int
    offset: int
    batch: int
    kind: str
    group: GroupId
    term: int
    index: int
    length: int
    detail: str


@dataclass(frozen=True, slots=True)
class SnapshotPicture:
    """`state`: "current" (what the log names), "older", "unrecorded" (newer than what the log names), "half-written",
    "missing" or "damaged"; `problem` says what is wrong with it."""

    group: GroupId
    path: str
    state: str
    index: int = 0
    term: int = 0
    size_bytes: int = 0
    problem: str = ""


def inspect_log(filesystem: FileSystem, directory: str, identity: Identity | None = None) -> LogPicture:
    """Read the log as a start with that identity would. Raises `UnknownFormat`, `StorageFailed`, `LogLost`, and
    `IdentityMismatch` for a segment of another node's."""
    found = read_log(filesystem, directory, identity)
    head = found.head
    damage = list(found.warnings)
    if found.damage and not found.damage_known:
        damage.append(found.damage)
    damage += [group.damage for group in found.groups.values() if group.hit]
    notes = [group.damage for group in found.groups.values() if group.damage and not group.hit]
    if found.damage and found.damage_known:
        notes.append(found.damage)
    for name in filesystem.listdir(directory):
        if not is_segment(name):
            notes.append(f"{directory}/{name}: a foreign file")
    return LogPicture(
        cluster=head.cluster.hex() if head is not None else "",
        node=head.node if head is not None else 0,
        node_uuid=head.node_uuid.hex() if head is not None else "",
        incarnation=found.incarnation,
        segments=tuple(_segments(filesystem, directory, found)),
        groups=tuple(_groups(found)),
        tombstones=tuple(sorted(found.tombstones)),
        discarded_tail_bytes=found.discarded_tail_bytes,
        damage=tuple(damage),
        notes=tuple(notes),
    )


def _segments(filesystem: FileSystem, directory: str, found: Recovered) -> Iterator[SegmentPicture]:
    newest = found.segments[-1].number if found.segments else 0
    for row in found.segments:
        part = "newest" if row.number == newest else "older"
        batches = (row.first_batch, row.last_batch, row.durable_batch)
        path = segment_path(directory, row.number)
        yield SegmentPicture(row.number, path, part, found.capacities[row.number], row.end, *batches)
    for number in found.unused:
        path = segment_path(directory, number)
        yield SegmentPicture(number, path, "spare", _size(filesystem, path))


def _size(filesystem: FileSystem, path: str) -> int:
    file = filesystem.open(path)
    try:
        return file.size()
    finally:
        file.close()


def _groups(found: Recovered) -> Iterator[GroupPicture]:
    for number, group in sorted(found.groups.items()):
        entries = group.prefix()
        snapshot = group.snapshot
        base = snapshot.index if snapshot is not None else 0
        yield GroupPicture(
            group=number,
            replica=group.create.replica if group.create is not None else 0,
            term=group.hard_state.term,
            vote=group.hard_state.vote,
            commit=group.hard_state.commit,
            snapshot_index=base,
            snapshot_term=snapshot.term if snapshot is not None else 0,
            snapshot_id=snapshot.snapshot_id if snapshot is not None else "",
            first_index=base + 1,
            last_index=base + len(entries),
            entry_bytes=sum(place.length for _, place in entries),
            forgetful=Mark.FORGETFUL in group.marks,
            hard_state_lost=Mark.HARD_STATE_LOST in group.marks,
            damage=group.damage,
        )


def dump_log(filesystem: FileSystem, directory: str) -> Iterator[RecordPicture | Place]:
    """Every record of the log's segments in the order of batches, bad places in between. Raises as `inspect_log`."""
    for row in read_log(filesystem, directory, None).segments:
        yield from _dump_segment(filesystem, segment_path(directory, row.number), row)


def _dump_segment(filesystem: FileSystem, path: str, row: SegmentRow) -> Iterator[RecordPicture | Place]:
    file = filesystem.open(path)
    try:
        data = file.pread(row.end, 0)
    finally:
        file.close()
    offset, expected = 0, row.first_batch
    while expected and expected <= row.last_batch:
        try:
            batch = read_batch(data, offset, row.number, expected)
        except BadBatch as error:
            yield Place(path, offset, f"batch {expected}: {error}")
            offset, expected = find_batch(data, offset, row.number, above=expected)
            continue
        for header in batch.headers:
            yield _record(data, header)
        offset, expected = batch.end, expected + 1


def _record(data: bytes, header: Header) -> RecordPicture:
    payload = memoryview(data)[header.payload_offset : header.end]
    detail = ""
    if header.kind in (Kind.ENTRY, Kind.COPY):
        detail = EntryKind(header.detail).name.lower()
    elif header.kind is Kind.HARD_STATE:
        state = decode_hard_state(payload)
        detail = f"vote {state.vote} commit {state.commit}"
    elif header.kind is Kind.SNAPSHOT:
        detail = f"{decode_meta(payload).snapshot_id}{', log above it stays' if header.detail else ''}"
    elif header.kind is Kind.MARK:
        detail = Mark(header.detail).name or "none"
    elif header.kind is Kind.HEAD:
        head = decode_head(payload)
        detail = f"incarnation {head.incarnation}, {len(head.groups)} groups, {len(head.segments)} older segments"
    place = (header.segment, header.offset, header.batch, header.kind.name.lower())
    return RecordPicture(*place, header.group, header.term, header.index, header.length, detail)


def inspect_snapshots(
    filesystem: FileSystem, directory: str, recorded: dict[GroupId, SnapshotMeta]
) -> Iterator[SnapshotPicture | Place]:
    """Verify every snapshot file to its last byte. `recorded`: what the log names. Places are foreign files. Raises
    `StorageFailed`."""
    store = SnapshotFiles(filesystem, directory, read_only=True)
    missing = dict(recorded)
    for folder in filesystem.listdir(directory) if filesystem.exists(directory) else []:
        match = _GROUP_FOLDER.fullmatch(folder)
        if match is None:
            yield Place(f"{directory}/{folder}", -1, "a foreign file")
            continue
        group = int(match.group(1))
        for name in filesystem.listdir(f"{directory}/{folder}"):
            path = f"{directory}/{folder}/{name}"
            snapshot_id = name.removesuffix(SUFFIX)
            if name.endswith(HALF_WRITTEN):
                yield SnapshotPicture(group, path, "half-written")
            elif name == snapshot_id:
                yield Place(path, -1, "a foreign file")
            else:
                if group in missing and missing[group].snapshot_id == snapshot_id:
                    del missing[group]
                yield _snapshot(store, group, path, snapshot_id, recorded.get(group))
    for group, meta in sorted(missing.items()):
        path = f"{directory}/group-{group}/{meta.snapshot_id}{SUFFIX}"
        yield SnapshotPicture(group, path, "missing", meta.index, meta.term, problem="the log names it")


def _snapshot(
    store: SnapshotFiles, group: GroupId, path: str, snapshot_id: str, recorded: SnapshotMeta | None
) -> SnapshotPicture:
    try:
        meta = store.meta(group, snapshot_id)
        store.verify(group, meta)
        current = recorded is not None and recorded.snapshot_id == snapshot_id
        if current and recorded is not None:
            store.verify(group, recorded)
    except (SnapshotDamaged, UnknownFormat, ValueError) as error:
        return SnapshotPicture(group, path, "damaged", problem=str(error))
    newer = recorded is None or meta.index > recorded.index
    state = "current" if current else "unrecorded" if newer else "older"
    return SnapshotPicture(group, path, state, meta.index, meta.term, meta.size_bytes)


def recorded_snapshots(filesystem: FileSystem, directory: str) -> dict[GroupId, SnapshotMeta]:
    """What the log in that folder names; empty when there is no log that can be read."""
    try:
        found = read_log(filesystem, directory, None)
    except (StorageError, StorageFailed):
        return {}
    return {number: group.snapshot for number, group in found.groups.items() if group.snapshot is not None}
