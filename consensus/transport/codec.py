"""Messages as they travel: dataclass <-> protobuf.

Owns frames, their origins and the bounds of what is accepted. Invariants: protobuf objects stay here and in
messages.py; everything from outside is checked for length and range before it becomes a message; payloads are views
into the received bytes. Must not know: streams, who may send what.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from crc32c import crc32c
from google.protobuf.message import DecodeError

from consensus.core.interface import AppendRequest, NodeId, Payload
from consensus.transport.errors import BadFrame
from consensus.transport.frames import join_frame, split_frame
from consensus.transport.interface import (
    Envelope,
    NodeHeartbeat,
    NodeHeartbeatAnswer,
    SnapshotChunk,
    TransportMessage,
)
from consensus.transport.messages import Cursor, decode_envelope, encode_envelope, number, size_of
from consensus.v1 import consensus_pb2 as pb

ENVELOPES_MAX = 4096
"""Messages in a frame; a frame with more is refused."""
ENTRIES_MAX = 65536
"""Entries in a frame; a frame with more is refused."""
ENTRY_HEADER_BYTES = 32
"""What an entry costs in a frame's header, about."""
ROW_BYTES = 40
"""What a row of a heartbeat between nodes costs, about."""
CHECK_BYTES = 4 << 20
"""So many bytes are summed at a time on receipt: less than a millisecond, and most frames have less."""


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
        return sum(ENTRY_HEADER_BYTES + size_of(entry.payload) for entry in message.entries)
    if isinstance(message, NodeHeartbeat):
        return ROW_BYTES * (len(message.rows) + len(message.asleep_rows))
    if isinstance(message, NodeHeartbeatAnswer):
        return sum(ROW_BYTES + len(row.note) for row in message.rows) + ROW_BYTES * len(message.differing)
    return size_of(message.data) if isinstance(message, SnapshotChunk) else 0


# --- out ------------------------------------------------------------------------------------------------------------


def encode(origin: Origin, envelopes: Sequence[Envelope]) -> bytes:
    """One frame. Notes longer than `NOTE_BYTES_MAX` are a bug of the sender's."""
    header = pb.Header(
        cluster=origin.cluster, from_node=origin.node, node_uuid=origin.node_uuid, incarnation=origin.incarnation
    )
    payloads = _fill(header, envelopes)
    return join_frame(header.SerializeToString(), payloads)


def encode_parts(envelopes: Sequence[Envelope]) -> tuple[bytes, list[Payload]]:
    """Header and payloads of a frame whose connection says whose it is."""
    header = pb.Header()
    payloads = _fill(header, envelopes)
    return header.SerializeToString(), payloads


def _fill(header: pb.Header, envelopes: Sequence[Envelope]) -> list[Payload]:
    payloads: list[Payload] = []
    for envelope in envelopes:
        encode_envelope(header.envelopes.add(), envelope, payloads)
    return payloads


# --- in -------------------------------------------------------------------------------------------------------------


def decode(data: bytes) -> Received:
    """A frame. Raises `BadFrame`, which names the field and what was expected."""
    raw, payload = split_frame(data)
    header = _header(raw)
    if len(header.cluster) != 16 or len(header.node_uuid) != 16:
        raise BadFrame(f"cluster, node_uuid: {len(header.cluster)}, {len(header.node_uuid)} bytes, expected 16 each")
    origin = Origin(header.cluster, header.from_node, header.node_uuid, number("incarnation", header.incarnation))
    return _read(origin, header, payload)


def decode_parts(origin: Origin, header: bytes, payload: memoryview) -> Received:
    """A frame of `encode_parts`, of that sender. Raises `BadFrame`."""
    return _read(origin, _header(header), payload)


def _header(raw: bytes) -> pb.Header:
    try:
        header: pb.Header = pb.Header.FromString(raw)
    except (DecodeError, ValueError) as error:
        raise BadFrame("header: not a Header") from error
    return header


def _read(origin: Origin, header: pb.Header, payload: memoryview) -> Received:
    if len(header.envelopes) > ENVELOPES_MAX:
        raise BadFrame(f"envelopes: {len(header.envelopes)}, expected at most {ENVELOPES_MAX}")
    entries = sum(len(envelope.append_request.entries) for envelope in header.envelopes)
    if entries > ENTRIES_MAX:
        raise BadFrame(f"entries: {entries}, expected at most {ENTRIES_MAX}")
    cursor = Cursor(payload)
    envelopes = tuple(decode_envelope(envelope, origin.incarnation, cursor) for envelope in header.envelopes)
    cursor.done()
    return Received(origin, envelopes)


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
