"""Messages as they travel: dataclass <-> protobuf.

Owns the mapping and the bounds of what is accepted. Invariants: protobuf objects stay here; everything from outside is
checked for length and range before it becomes a message; payloads are views into the received bytes. Must not know:
streams, who may send what.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from crc32c import crc32c
from google.protobuf.message import DecodeError

from consensus.core.errors import InvariantViolated
from consensus.core.interface import (
    AppendRequest,
    AppendResponse,
    Configuration,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatResponse,
    NodeId,
    Payload,
    SnapshotMeta,
    VoteRequest,
    VoteResponse,
)
from consensus.transport.errors import BadFrame
from consensus.transport.frames import join_frame, split_frame
from consensus.transport.interface import (
    NOTE_BYTES_MAX,
    Envelope,
    Report,
    SnapshotAnswer,
    SnapshotChunk,
    SnapshotRequest,
    TransportMessage,
)
from consensus.v1 import consensus_pb2 as pb

ENVELOPES_MAX = 4096
"""Messages in a frame; a frame with more is refused."""
ENTRIES_MAX = 65536
"""Entries in a frame; a frame with more is refused."""
MEMBERS_MAX = 1024
"""Voters and learners of a configuration."""
NUMBER_MAX = 2**63
"""Terms, indexes, incarnations and offsets from outside are below."""
ENTRY_HEADER_BYTES = 32
"""What an entry costs in a frame's header, about."""
CHECK_BYTES = 1 << 20
"""So many bytes are summed at a time on receipt."""
_SNAPSHOT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_KINDS = {int(kind): kind for kind in EntryKind}


@dataclass(frozen=True, slots=True)
class Origin:
    """Who sent a frame. `cluster` and `node_uuid` are 16 bytes."""

    cluster: bytes
    node: NodeId
    node_uuid: bytes
    incarnation: int


@dataclass(frozen=True, slots=True)
class Received:
    """A frame as it came in. Payload checksums are not looked at yet: see `verified`."""

    origin: Origin
    envelopes: tuple[Envelope, ...]


def carried_bytes(message: TransportMessage) -> int:
    """Payload that a message carries, and what describes it."""
    if isinstance(message, AppendRequest):
        return sum(ENTRY_HEADER_BYTES + _size(entry.payload) for entry in message.entries)
    return _size(message.data) if isinstance(message, SnapshotChunk) else 0


def _size(payload: Payload) -> int:
    return payload.nbytes if isinstance(payload, memoryview) else len(payload)


# --- out ------------------------------------------------------------------------------------------------------------


def encode(origin: Origin, envelopes: Sequence[Envelope]) -> bytes:
    """One frame. Notes longer than `NOTE_BYTES_MAX` are a bug of the sender's."""
    header = pb.Header(
        cluster=origin.cluster, from_node=origin.node, node_uuid=origin.node_uuid, incarnation=origin.incarnation
    )
    payloads: list[Payload] = []
    for envelope in envelopes:
        _encode_one(header.envelopes.add(), envelope, payloads)
    return join_frame(header.SerializeToString(), payloads)


def _encode_one(out: pb.Envelope, envelope: Envelope, payloads: list[Payload]) -> None:
    message = envelope.message
    out.group = envelope.group
    out.from_replica = message.sender
    out.to_replica = message.to
    out.term = message.term
    if len(envelope.note) > NOTE_BYTES_MAX:
        raise InvariantViolated(f"a note of {len(envelope.note)} bytes; at most {NOTE_BYTES_MAX} travel")
    if envelope.note:
        out.note = envelope.note
    match message:
        case AppendRequest():
            out.append_request.SetInParent()
            request = out.append_request
            request.previous_index = message.previous_index
            request.previous_term = message.previous_term
            request.commit = message.commit
            for entry in message.entries:
                size = _size(entry.payload)
                request.entries.add(
                    term=entry.term, index=entry.index, kind=int(entry.kind), length=size, crc=entry.crc
                )
                if size:
                    payloads.append(entry.payload)
        case AppendResponse():
            out.append_response.CopyFrom(
                pb.AppendResponse(
                    rejected=message.rejected,
                    match_index=message.match_index,
                    conflict_index=message.conflict_index,
                    conflict_term=message.conflict_term,
                    last_index=message.last_index,
                )
            )
        case Heartbeat():
            out.heartbeat.CopyFrom(pb.Heartbeat(commit=message.commit, round=message.round))
        case HeartbeatResponse():
            out.heartbeat_response.CopyFrom(pb.HeartbeatResponse(round=message.round, match_index=message.match_index))
        case VoteRequest():
            out.vote_request.CopyFrom(
                pb.VoteRequest(pre=message.pre, last_index=message.last_index, last_term=message.last_term)
            )
        case VoteResponse():
            out.vote_response.CopyFrom(pb.VoteResponse(pre=message.pre, granted=message.granted))
        case SnapshotChunk():
            size = _size(message.data)
            out.snapshot_chunk.CopyFrom(
                pb.SnapshotChunk(
                    meta=_encode_meta(message.meta),
                    offset=message.offset,
                    length=size,
                    crc=message.crc,
                    last=message.last,
                )
            )
            if size:
                payloads.append(message.data)
        case SnapshotAnswer():
            out.snapshot_answer.CopyFrom(
                pb.SnapshotAnswer(
                    snapshot_id=message.snapshot_id,
                    next_offset=message.next_offset,
                    refused=message.refused,
                    installed=message.installed,
                    index=message.index,
                )
            )
        case SnapshotRequest():
            out.snapshot_request.CopyFrom(pb.SnapshotRequest(index=message.index))
        case Report():
            if len(message.content) > NOTE_BYTES_MAX:
                raise InvariantViolated(f"a report of {len(message.content)} bytes; at most {NOTE_BYTES_MAX} travel")
            out.report.CopyFrom(pb.Report(content=message.content))
        case _:
            raise InvariantViolated(f"{type(message).__name__} never travels")


def _encode_meta(meta: SnapshotMeta) -> pb.SnapshotMeta:
    return pb.SnapshotMeta(
        index=meta.index,
        term=meta.term,
        configuration=pb.Configuration(voters=meta.configuration.voters, learners=meta.configuration.learners),
        snapshot_id=meta.snapshot_id,
        size_bytes=meta.size_bytes,
    )


# --- in -------------------------------------------------------------------------------------------------------------


def decode(data: bytes) -> Received:
    """A frame. Raises `BadFrame`, which names the field and what was expected."""
    raw, payload = split_frame(data)
    try:
        header = pb.Header.FromString(raw)
    except (DecodeError, ValueError) as error:
        raise BadFrame("header: not a Header") from error
    if len(header.cluster) != 16 or len(header.node_uuid) != 16:
        raise BadFrame(f"cluster, node_uuid: {len(header.cluster)}, {len(header.node_uuid)} bytes, expected 16 each")
    if len(header.envelopes) > ENVELOPES_MAX:
        raise BadFrame(f"envelopes: {len(header.envelopes)}, expected at most {ENVELOPES_MAX}")
    entries = sum(len(envelope.append_request.entries) for envelope in header.envelopes)
    if entries > ENTRIES_MAX:
        raise BadFrame(f"entries: {entries}, expected at most {ENTRIES_MAX}")
    origin = Origin(header.cluster, header.from_node, header.node_uuid, _number("incarnation", header.incarnation))
    cursor = _Cursor(payload)
    envelopes = tuple(_decode_one(envelope, origin, cursor) for envelope in header.envelopes)
    cursor.done()
    return Received(origin, envelopes)


class _Cursor:
    """Hands out the payload piece by piece."""

    __slots__ = ("_at", "_payload")

    def __init__(self, payload: memoryview) -> None:
        self._payload = payload
        self._at = 0

    def take(self, length: int) -> memoryview:
        end = self._at + length
        if end > len(self._payload):
            raise BadFrame(f"payload: {len(self._payload)} bytes, expected {end} or more by the lengths in the header")
        piece = self._payload[self._at : end]
        self._at = end
        return piece

    def done(self) -> None:
        if self._at != len(self._payload):
            raise BadFrame(f"payload: {len(self._payload)} bytes, expected {self._at} by the lengths in the header")


def _number(name: str, value: int) -> int:
    if value >= NUMBER_MAX:
        raise BadFrame(f"{name}: {value}, expected less than {NUMBER_MAX}")
    return value


def _decode_one(envelope: pb.Envelope, origin: Origin, cursor: _Cursor) -> Envelope:
    if len(envelope.note) > NOTE_BYTES_MAX:
        raise BadFrame(f"note: {len(envelope.note)} bytes, expected at most {NOTE_BYTES_MAX}")
    return Envelope(envelope.group, _decode_body(envelope, origin.incarnation, cursor), envelope.note)


def _decode_body(envelope: pb.Envelope, incarnation: int, cursor: _Cursor) -> TransportMessage:
    # Terms, and indexes of Raft messages, are judged by the core, which counts what it drops.
    sender, to, term = envelope.from_replica, envelope.to_replica, envelope.term
    match envelope.WhichOneof("body"):
        case "append_request":
            request = envelope.append_request
            return AppendRequest(
                sender=sender,
                to=to,
                term=term,
                incarnation=incarnation,
                previous_index=request.previous_index,
                previous_term=request.previous_term,
                commit=request.commit,
                entries=tuple(_decode_entry(entry, cursor) for entry in request.entries),
            )
        case "append_response":
            answer = envelope.append_response
            return AppendResponse(
                sender=sender,
                to=to,
                term=term,
                incarnation=incarnation,
                rejected=answer.rejected,
                match_index=answer.match_index,
                conflict_index=answer.conflict_index,
                conflict_term=answer.conflict_term,
                last_index=answer.last_index,
            )
        case "heartbeat":
            beat = envelope.heartbeat
            return Heartbeat(
                sender=sender, to=to, term=term, incarnation=incarnation, commit=beat.commit, round=beat.round
            )
        case "heartbeat_response":
            echo = envelope.heartbeat_response
            return HeartbeatResponse(
                sender=sender, to=to, term=term, incarnation=incarnation, round=echo.round, match_index=echo.match_index
            )
        case "vote_request":
            vote = envelope.vote_request
            return VoteRequest(
                sender=sender,
                to=to,
                term=term,
                incarnation=incarnation,
                pre=vote.pre,
                last_index=vote.last_index,
                last_term=vote.last_term,
            )
        case "vote_response":
            voted = envelope.vote_response
            return VoteResponse(
                sender=sender, to=to, term=term, incarnation=incarnation, pre=voted.pre, granted=voted.granted
            )
        case "snapshot_chunk":
            chunk = envelope.snapshot_chunk
            return SnapshotChunk(
                sender=sender,
                to=to,
                term=term,
                incarnation=incarnation,
                meta=_decode_meta(chunk.meta),
                offset=_number("offset", chunk.offset),
                data=cursor.take(chunk.length),
                crc=chunk.crc,
                last=chunk.last,
            )
        case "snapshot_answer":
            held = envelope.snapshot_answer
            return SnapshotAnswer(
                sender=sender,
                to=to,
                term=term,
                incarnation=incarnation,
                snapshot_id=_snapshot_id(held.snapshot_id),
                next_offset=_number("next_offset", held.next_offset),
                refused=held.refused,
                installed=held.installed,
                index=_number("index", held.index),
            )
        case "snapshot_request":
            wanted = envelope.snapshot_request
            return SnapshotRequest(
                sender=sender, to=to, term=term, incarnation=incarnation, index=_number("index", wanted.index)
            )
        case "report":
            report = envelope.report
            if len(report.content) > NOTE_BYTES_MAX:
                raise BadFrame(f"report: {len(report.content)} bytes, expected at most {NOTE_BYTES_MAX}")
            return Report(sender=sender, to=to, term=term, incarnation=incarnation, content=report.content)
        case _:
            raise BadFrame("body: none that this build knows")


def _decode_entry(entry: pb.EntryHeader, cursor: _Cursor) -> Entry:
    kind = _KINDS.get(entry.kind)
    if kind is None:
        raise BadFrame(f"entries.kind: {entry.kind}, expected one of {sorted(_KINDS)}")
    return Entry(entry.term, entry.index, kind, cursor.take(entry.length), entry.crc)


def _snapshot_id(text: str) -> str:
    """It becomes a file's name."""
    if not _SNAPSHOT_ID.fullmatch(text):
        raise BadFrame("snapshot_id: expected 1 to 100 letters, digits, '.', '_' and '-'")
    return text


def _decode_meta(meta: pb.SnapshotMeta) -> SnapshotMeta:
    configuration = meta.configuration
    members = len(configuration.voters) + len(configuration.learners)
    if members > MEMBERS_MAX:
        raise BadFrame(f"configuration: {members} members, expected at most {MEMBERS_MAX}")
    return SnapshotMeta(
        index=_number("meta.index", meta.index),
        term=_number("meta.term", meta.term),
        configuration=Configuration(tuple(configuration.voters), tuple(configuration.learners)),
        snapshot_id=_snapshot_id(meta.snapshot_id),
        size_bytes=_number("meta.size_bytes", meta.size_bytes),
    )


# --- checksums ------------------------------------------------------------------------------------------------------


def verified(received: Received, dropped: Counter[str]) -> Iterator[list[Envelope] | None]:
    """Check the CRCs of all payloads. Gives None after each `CHECK_BYTES`, so that an event loop can look up, and at
    last the envelopes whose payloads are as their senders made them; the others are counted in `dropped`."""
    good: list[Envelope] = []
    budget = CHECK_BYTES
    for envelope in received.envelopes:
        sound = True
        for payload, crc in _payloads(envelope.message):
            seen, view = 0, memoryview(payload).cast("B")
            for start in range(0, len(view), CHECK_BYTES):
                piece = view[start : start + CHECK_BYTES]
                seen = crc32c(piece, seen)
                budget -= len(piece)
                if budget < 0:
                    budget = CHECK_BYTES
                    yield None
            sound = sound and seen == crc
        if sound:
            good.append(envelope)
        else:
            dropped["payload_damaged"] += 1
    yield good


def _payloads(message: TransportMessage) -> list[tuple[Payload, int]]:
    if isinstance(message, AppendRequest):
        return [(entry.payload, entry.crc) for entry in message.entries]
    return [(message.data, message.crc)] if isinstance(message, SnapshotChunk) else []
