"""Payloads of the log's own records: snapshot metadata, hard state, and the table at the head of a segment (RULES W4).

Owns their encoding. Invariants: every variable part is counted and bounded; a payload that does not decode exactly to
its end raises `ValueError`. Must not know: offsets, files.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntFlag

from consensus.core.interface import Configuration, GroupId, HardState, Payload, SnapshotMeta

HEAD_VERSION = 1
SNAPSHOT_ID_BYTES_MAX = 200
MEMBERS_MAX = 1024
_META = struct.Struct("<QQQHHH")  # index, term, size; bytes of id, voters, learners
_HARD_STATE = struct.Struct("<QQQ")
_HEAD = struct.Struct("<HHI16s16sQQHHIII")
_SEGMENT = struct.Struct("<QQQQQ")
_PEER = struct.Struct("<I16s")
_GROUP = struct.Struct("<IIQQQQQQI")
_TOMBSTONE = struct.Struct("<IQ")


class Mark(IntFlag):
    """Durable marks of a group. FORGETFUL and TOMBSTONE keep their place for RULES W7 and I1."""

    FORGETFUL = 1
    TOMBSTONE = 2
    DAMAGED = 4


NO_MARKS = Mark(0)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The table at the head of a segment: enough to go on from when earlier segments without live entries are gone."""

    cluster: bytes
    node: int
    node_uuid: bytes
    incarnation: int
    next_segment: int
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
    name = meta.snapshot_id.encode()
    voters, learners = meta.configuration.voters, meta.configuration.learners
    if len(name) > SNAPSHOT_ID_BYTES_MAX or len(voters) > MEMBERS_MAX or len(learners) > MEMBERS_MAX:
        raise ValueError(
            f"snapshot id of {len(name)} bytes or {len(voters)} + {len(learners)} members is over the limit"
        )
    fixed = _META.pack(meta.index, meta.term, meta.size_bytes, len(name), len(voters), len(learners))
    return fixed + name + struct.pack(f"<{len(voters) + len(learners)}Q", *voters, *learners)


def decode_meta(data: Payload) -> SnapshotMeta:
    reader = _Reader(data)
    index, term, size, name_bytes, voter_count, learner_count = reader.take(_META)
    name = reader.bytes(name_bytes).decode()
    members = reader.take(struct.Struct(f"<{voter_count + learner_count}Q"))
    reader.end()
    return SnapshotMeta(index, term, Configuration(members[:voter_count], members[voter_count:]), name, size)


def encode_head(head: Head) -> bytes:
    counts = (len(head.peers), 0, len(head.segments), len(head.groups), len(head.tombstones))
    parts = [
        _HEAD.pack(
            HEAD_VERSION, 0, head.node, head.cluster, head.node_uuid, head.incarnation, head.next_segment, *counts
        )
    ]
    parts += [_PEER.pack(node, uuid) for node, uuid in sorted(head.peers.items())]
    parts += [
        _SEGMENT.pack(row.number, row.end, row.first_batch, row.last_batch, row.durable_batch) for row in head.segments
    ]
    for row in head.groups:
        meta = b"" if row.snapshot is None else encode_meta(row.snapshot)
        state = row.hard_state
        indexes = (row.first_index, row.last_index, row.last_term)
        parts += [_GROUP.pack(row.group, row.marks, state.term, state.vote, state.commit, *indexes, len(meta)), meta]
    parts += [_TOMBSTONE.pack(*tombstone) for tombstone in head.tombstones]
    return b"".join(parts)


def decode_head(data: Payload) -> Head:
    """Raises `ValueError` for a version or a length that does not fit."""
    reader = _Reader(data)
    version, _, node, cluster, node_uuid, incarnation, next_segment, *counts = _HEAD.unpack(reader.bytes(_HEAD.size))
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
        peers=peers,
        segments=segments,
        groups=groups,
        tombstones=tombstones,
    )


def _decode_group(reader: _Reader) -> GroupRow:
    group, marks, term, vote, commit, first, last, last_term, meta_bytes = reader.take(_GROUP)
    meta = decode_meta(reader.bytes(meta_bytes)) if meta_bytes else None
    return GroupRow(group, Mark(marks), HardState(term, vote, commit), first, last, last_term, meta)
