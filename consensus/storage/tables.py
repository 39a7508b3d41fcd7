"""Payloads of the log's own records: snapshot metadata, hard state, creations, and the table at the head of a segment
(RULES W4).

Owns their encoding. Invariants: every variable part is counted and bounded; a payload that does not decode exactly to
its end raises `ValueError`. Must not know: offsets, files.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntFlag

from consensus.core.configuration import decode_configuration, encode_configuration
from consensus.core.interface import GroupId, HardState, Payload, SnapshotMeta
from consensus.storage.interface import Creation

HEAD_VERSION = 2
SNAPSHOT_ID_BYTES_MAX = 200
_META = struct.Struct("<QQQHHI")  # index, term, size; bytes of id, zero, bytes of configuration
_REPLICA = struct.Struct("<Q")
_HARD_STATE = struct.Struct("<QQQ")
_HEAD = struct.Struct("<HHI16s16sQQHHIII")
_SEGMENT = struct.Struct("<QQQQQ")
_PEER = struct.Struct("<I16s")
_GROUP = struct.Struct("<IIQQQQQQII")  # group, marks, hard state, live entries, bytes of snapshot and creation
_TOMBSTONE = struct.Struct("<IQ")


class Mark(IntFlag):
    """Durable marks of a group (RULES W7)."""

    FORGETFUL = 1
    """It may have forgotten entries that it acknowledged."""
    HARD_STATE_LOST = 4
    """It may have forgotten its term and vote, or who it is: never to run again under its replica id."""


NO_MARKS = Mark(0)


class HeadFlag(IntFlag):
    UNKNOWN_LOST = 1
    """Batches were lost of which nothing can be read: groups that the table does not list may have been in them."""


NO_FLAGS = HeadFlag(0)


@dataclass(frozen=True, slots=True)
class SegmentRow:
    """Where a retained segment ends: `end` in bytes, its first and last batch, and the last one that was known durable
    when the process that wrote it ended (equal to `last_batch` when it was rotated in order)."""

    number: int
    end: int
    first_batch: int
    last_batch: int
    durable_batch: int


@dataclass(frozen=True, slots=True)
class GroupRow:
    """A group as of the head: its live entries are [first_index, last_index]; empty when first_index > last_index."""

    group: GroupId
    marks: Mark
    hard_state: HardState
    first_index: int
    last_index: int
    last_term: int
    snapshot: SnapshotMeta | None
    create: Creation | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The table at the head of a segment: enough to go on from when earlier segments without live entries are gone."""

    cluster: bytes
    node: int
    node_uuid: bytes
    incarnation: int
    next_segment: int
    flags: HeadFlag = NO_FLAGS
    peers: dict[int, bytes] = field(default_factory=dict)
    segments: tuple[SegmentRow, ...] = ()
    groups: tuple[GroupRow, ...] = ()
    tombstones: tuple[tuple[GroupId, int], ...] = ()


class _Reader:
    def __init__(self, data: Payload) -> None:
        self._data = memoryview(data)
        self._at = 0

    def take(self, layout: struct.Struct) -> tuple[int, ...]:
        values: tuple[int, ...] = layout.unpack(self.bytes(layout.size))
        return values

    def bytes(self, length: int) -> bytes:
        if length > len(self._data) - self._at:
            raise ValueError(f"{length} bytes wanted at {self._at} of {len(self._data)}")
        self._at += length
        return bytes(self._data[self._at - length : self._at])

    def end(self) -> None:
        if self._at != len(self._data):
            raise ValueError(f"{len(self._data) - self._at} bytes too many")


def encode_hard_state(state: HardState) -> bytes:
    return _HARD_STATE.pack(state.term, state.vote, state.commit)


def decode_hard_state(data: Payload) -> HardState:
    reader = _Reader(data)
    state = HardState(*reader.take(_HARD_STATE))
    reader.end()
    return state


def encode_meta(meta: SnapshotMeta) -> bytes:
    """Raises `ValueError` for what does not fit, and for a configuration that can't be."""
    name = meta.snapshot_id.encode()
    if len(name) > SNAPSHOT_ID_BYTES_MAX:
        raise ValueError(f"snapshot id of {len(name)} bytes is over the limit of {SNAPSHOT_ID_BYTES_MAX}")
    configuration = encode_configuration(meta.configuration)
    return _META.pack(meta.index, meta.term, meta.size_bytes, len(name), 0, len(configuration)) + name + configuration


def decode_meta(data: Payload) -> SnapshotMeta:
    reader = _Reader(data)
    index, term, size, name_bytes, _, configuration_bytes = reader.take(_META)
    name = reader.bytes(name_bytes).decode()
    configuration = decode_configuration(reader.bytes(configuration_bytes))
    reader.end()
    return SnapshotMeta(index, term, configuration, name, size)


def encode_creation(create: Creation) -> bytes:
    return _REPLICA.pack(create.replica) + encode_configuration(create.configuration)


def decode_creation(data: Payload) -> Creation:
    (replica,) = _REPLICA.unpack_from(data)
    return Creation(replica, decode_configuration(memoryview(data)[_REPLICA.size :]))


def encode_head(head: Head) -> bytes:
    counts = (len(head.peers), 0, len(head.segments), len(head.groups), len(head.tombstones))
    owner = (head.node, head.cluster, head.node_uuid, head.incarnation)
    parts = [_HEAD.pack(HEAD_VERSION, head.flags, *owner, head.next_segment, *counts)]
    parts += [_PEER.pack(node, uuid) for node, uuid in sorted(head.peers.items())]
    parts += [
        _SEGMENT.pack(row.number, row.end, row.first_batch, row.last_batch, row.durable_batch) for row in head.segments
    ]
    for row in head.groups:
        meta = b"" if row.snapshot is None else encode_meta(row.snapshot)
        create = b"" if row.create is None else encode_creation(row.create)
        state = row.hard_state
        numbers = (state.term, state.vote, state.commit, row.first_index, row.last_index, row.last_term)
        parts += [_GROUP.pack(row.group, row.marks, *numbers, len(meta), len(create)), meta, create]
    parts += [_TOMBSTONE.pack(*tombstone) for tombstone in head.tombstones]
    return b"".join(parts)


def decode_head(data: Payload) -> Head:
    """Raises `ValueError` for a version or a length that does not fit."""
    reader = _Reader(data)
    version, flags, node, cluster, node_uuid, incarnation, next_segment, *counts = _HEAD.unpack(
        reader.bytes(_HEAD.size)
    )
    if version != HEAD_VERSION:
        raise ValueError(f"head of version {version}")
    peer_count, _, segment_count, group_count, tombstone_count = counts
    peers = dict(_PEER.unpack(reader.bytes(_PEER.size)) for _ in range(peer_count))
    segments = tuple(SegmentRow(*reader.take(_SEGMENT)) for _ in range(segment_count))
    groups = tuple(_decode_group(reader) for _ in range(group_count))
    tombstones = tuple((group, replica) for group, replica in (reader.take(_TOMBSTONE) for _ in range(tombstone_count)))
    reader.end()
    return Head(
        cluster=cluster,
        node=node,
        node_uuid=node_uuid,
        incarnation=incarnation,
        next_segment=next_segment,
        flags=HeadFlag(flags),
        peers=peers,
        segments=segments,
        groups=groups,
        tombstones=tombstones,
    )


def _decode_group(reader: _Reader) -> GroupRow:
    group, marks, term, vote, commit, first, last, last_term, meta_bytes, create_bytes = reader.take(_GROUP)
    meta = decode_meta(reader.bytes(meta_bytes)) if meta_bytes else None
    create = decode_creation(reader.bytes(create_bytes)) if create_bytes else None
    return GroupRow(group, Mark(marks), HardState(term, vote, commit), first, last, last_term, meta, create)
