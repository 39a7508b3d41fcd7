"""What the benchmark's client and server say to each other: raw bytes on gRPC streams, no generated code.

Owns two messages. Commands (client to server): a count, a row for each (number, bytes, CRC32C), the payloads. Answers
(server to client): what became of them (one kind a message), and their numbers, or an announcement. Must not know: who
sends.
"""

from __future__ import annotations

import json
import struct
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

SERVICE = "benchmarks.v1.Commit"
MESSAGE_BYTES_MAX = (4 << 20) + (64 << 10)
_COUNT = struct.Struct("<I")
_ROW = struct.Struct("<QII")

COMMITTED = 1
REFUSED = 2
"""Surely without effect: another node leads, or this one is busy."""
UNKNOWN = 3
LEADING = 4
"""No answer: the node that sends it leads from now on, or still does, and serves; numbers holds its term."""


def encode_commands(first: int, payloads: Sequence[bytes], crcs: Sequence[int]) -> bytes:
    """One message; commands are numbered from `first` on."""
    rows = [
        _ROW.pack(first + at, len(payload), crc) for at, (payload, crc) in enumerate(zip(payloads, crcs, strict=True))
    ]
    return b"".join([_COUNT.pack(len(payloads)), *rows, *payloads])


def decode_commands(data: bytes) -> Iterator[tuple[int, memoryview, int]]:
    """(number, payload, CRC32C) of each."""
    view = memoryview(data)
    (count,) = _COUNT.unpack_from(data)
    at = _COUNT.size + count * _ROW.size
    for number, length, crc in _ROW.iter_unpack(view[_COUNT.size : at]):
        yield number, view[at : at + length], crc
        at += length


def encode_answer(kind: int, numbers: array[int]) -> bytes:
    return bytes((kind,)) + numbers.tobytes()


def decode_answer(data: bytes) -> tuple[int, array[int]]:
    numbers = array("Q")
    numbers.frombytes(memoryview(data)[1:])
    return data[0], numbers


def to_json(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode()


def from_json(data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(data)
    return found
