"""The bytes of a frame: {header = 1; payload = 15}, payload last.

Owns the hand-written path for that shape. Invariants: a frame is joined once when it is sent, and its payload is never
copied when it is read: it is a view into the received bytes; any other legal encoding of the same message goes to the
generated parser. Must not know: what header and payload mean.
"""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import DecodeError

from consensus.core.interface import Payload
from consensus.transport.errors import BadFrame
from consensus.v1 import consensus_pb2 as pb

_HEADER_TAG = b"\x0a"  # field 1, length-delimited
_PAYLOAD_TAG = b"\x7a"  # field 15, length-delimited
VARINT_BYTES_MAX = 5
"""Lengths are below 2**35."""


def varint(value: int) -> bytes:
    """A non-negative number as protobuf writes lengths."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _length(data: bytes, at: int) -> tuple[int, int] | None:
    """(value, position behind it) of the varint at `at`; None when it is cut short or overlong."""
    value = 0
    for position in range(at, min(at + VARINT_BYTES_MAX, len(data))):
        byte = data[position]
        value |= (byte & 0x7F) << (7 * (position - at))
        if byte < 0x80:
            return value, position + 1
    return None


def join_frame(header: bytes, payloads: Sequence[Payload]) -> bytes:
    """The frame as one buffer: the only copy of the payloads."""
    parts: list[Payload] = [_HEADER_TAG, varint(len(header)), header]
    total = sum(payload.nbytes if isinstance(payload, memoryview) else len(payload) for payload in payloads)
    if total:
        parts += [_PAYLOAD_TAG, varint(total), *payloads]
    return b"".join(parts)


def split_frame(data: bytes) -> tuple[bytes, memoryview]:
    """(header, payload). Raises `BadFrame`."""
    found = _split_by_hand(data)
    if found is not None:
        return found
    try:
        frame = pb.Frame.FromString(data)
    except (DecodeError, ValueError) as error:
        raise BadFrame(f"{len(data)} bytes are not a Frame") from error
    return frame.header.SerializeToString(), memoryview(frame.payload)


def _split_by_hand(data: bytes) -> tuple[bytes, memoryview] | None:
    if data[:1] != _HEADER_TAG:
        return None
    found = _length(data, 1)
    if found is None:
        return None
    length, start = found
    end = start + length
    if end == len(data):
        return data[start:end], memoryview(b"")
    if end > len(data) or data[end : end + 1] != _PAYLOAD_TAG:
        return None
    found = _length(data, end + 1)
    if found is None or found[1] + found[0] != len(data):
        return None
    return data[start:end], memoryview(data)[found[1] :]
