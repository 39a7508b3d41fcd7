"""Messages as they travel: dataclass <-> protobuf.

Owns the header and payloads of a frame, and the bounds of what is accepted. Invariants: protobuf objects stay here and
in messages.py; everything from outside is checked for length and range before it becomes a message; payloads are views
into the received bytes. Must not know: connections, who may send what.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from crc32c import crc32c
from google.protobuf.message import DecodeError

from consensus.core.interface import AppendRequest, Payload
from consensus.transport.errors import BadFrame
from consensus.transport.interface import (
    Envelope,
    NodeHeartbeat,
    NodeHeartbeatAnswer,
    SnapshotChunk,
    TransportMessage,
)
from consensus.transport.messages import Cursor, decode_envelope, encode_envelope, size_of
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


def encode(envelopes: Sequence[Envelope]) -> tuple[bytes, list[Payload]]:
    """Header and payloads of a frame. Notes longer than `NOTE_BYTES_MAX` are a bug of the sender's."""
    header = pb.Header()
    payloads: list[Payload] = []
    for envelope in envelopes:
        encode_envelope(header.envelopes.add(), envelope, payloads)
    return header.SerializeToString(), payloads


# --- in -------------------------------------------------------------------------------------------------------------


def decode(header: bytes, payload: memoryview, incarnation: int) -> tuple[Envelope, ...]:
    """A frame of a sender in that incarnation. Payload checksums are not looked at yet: see `verified`. Raises
    `BadFrame`, which names the field and what was expected."""
    try:
        parsed = pb.Header.FromString(header)
    except (DecodeError, ValueError) as error:
        raise BadFrame("header: not a Header") from error
    if len(parsed.envelopes) > ENVELOPES_MAX:
        raise BadFrame(f"envelopes: {len(parsed.envelopes)}, expected at most {ENVELOPES_MAX}")
    entries = sum(len(envelope.append_request.entries) for envelope in parsed.envelopes)
    if entries > ENTRIES_MAX:
        raise BadFrame(f"entries: {entries}, expected at most {ENTRIES_MAX}")
    cursor = Cursor(payload)
    envelopes = tuple(decode_envelope(envelope, incarnation, cursor) for envelope in parsed.envelopes)
    cursor.done()
    return envelopes


# --- checksums ------------------------------------------------------------------------------------------------------


def verified(envelopes: Sequence[Envelope], dropped: Counter[str]) -> Iterator[list[Envelope] | None]:
    """Check the CRCs of all payloads. Gives None after each `CHECK_BYTES`, so that an event loop can look up, and at
    last the envelopes whose payloads are as their senders made them; the others are counted in `dropped`."""
    good: list[Envelope] = []
    budget = CHECK_BYTES
    for envelope in envelopes:
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
