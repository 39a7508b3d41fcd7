"""Records of the log: the 64-byte header, and what it takes to verify one (RULES W1).

Owns the header's layout. Invariant: a record verifies only at the segment number and offset it was written for, so
neither an old record of a recycled segment nor a misdirected one is ever taken for a live one (HAZARDS 40). Must not
know: batches, segments' files, what payloads mean.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from consensus.core.interface import Payload
from consensus.storage.checksum import crc32c
from consensus.storage.errors import UnknownFormat

MAGIC = b"PSWL"
FORMAT_VERSION = 2
# magic, version, kind, detail, zero | group, length | term, index, segment, offset, batch | payload CRC, header CRC
HEADER = struct.Struct("<4sBBBBIIQQQQQII")
HEADER_BYTES = HEADER.size
_PLACE = struct.Struct("<QQ")
_PLACED = struct.Struct("<QQ4sBBBBIIQQQQQI")
"""The place, and a header without its own CRC."""
_PLACE_AT = 32
_CRC = struct.Struct("<I")
PAYLOAD_BYTES_MAX = 2**32 - 1


class Kind(IntEnum):
    BATCH = 1
    """Opens a batch: number, what was known durable, lengths."""
    HEAD = 2
    """Table at the head of a segment."""
    SNAPSHOT = 3
    """A durable snapshot; `detail` 1: the log held its (index, term), so entries above it stay."""
    HARD_STATE = 4
    ENTRY = 5
    """Supersedes all earlier records of its group at or above its index. `detail` is the entry's kind."""
    COPY = 6
    """An entry written again: supersedes nothing, only fills its own (index, term)."""
    INDEX = 7
    """Closes a batch: lists its records."""
    CREATE = 8
    """A replica was made by an order: `index` is its id, the payload also its first configuration (RULES I1)."""
    TOMBSTONE = 9
    """The replica whose id is `index` was deleted; all else of its group goes."""
    MARK = 10
    """The group's marks are `detail` from now on; with FORGETFUL in it, its snapshot and entries go (RULES W7)."""


@dataclass(slots=True)
class Record:
    """What is to be written, never changed. `crc` is the CRC32C of `payload`. Not frozen, because one is made for every
    entry and being frozen costs four times as much."""

    kind: Kind
    group: int = 0
    term: int = 0
    index: int = 0
    detail: int = 0
    payload: Payload = b""
    crc: int = 0


@dataclass(frozen=True, slots=True)
class Header:
    """A verified header. `offset` is the header's own, in bytes from the start of the segment."""

    kind: Kind
    detail: int
    group: int
    length: int
    term: int
    index: int
    segment: int
    offset: int
    batch: int
    crc: int

    @property
    def payload_offset(self) -> int:
        return self.offset + HEADER_BYTES

    @property
    def end(self) -> int:
        return self.offset + HEADER_BYTES + self.length


def seed(segment: int, offset: int) -> int:
    """Where the CRC of the header at (`segment`, `offset`) starts from."""
    return crc32c(_PLACE.pack(segment, offset))


def in_place(data: bytes, offset: int, segment: int, *, base: int = 0) -> bool:
    """Whether the header at `offset` itself says that it belongs to this segment and offset."""
    at = offset - base + _PLACE_AT
    return data[at : at + _PLACE.size] == _PLACE.pack(segment, offset)


def encode_header(record: Record, *, segment: int, offset: int, batch: int) -> bytes:
    opening = (MAGIC, FORMAT_VERSION, record.kind, record.detail, 0, record.group, len(record.payload))
    ending = (record.term, record.index, segment, offset, batch, record.crc)
    # With the place before it, so that one pass over both is the CRC seeded with the place.
    placed = _PLACED.pack(segment, offset, *opening, *ending)
    return placed[_PLACE.size :] + _CRC.pack(crc32c(placed))


def decode_header(data: bytes, offset: int, segment: int, *, base: int = 0) -> Header | None:
    """The header at `offset` of the segment, of whose bytes these are the ones from `base` on, or None when nothing
    verifies there. Raises `UnknownFormat` for a header that verifies but is of another version: that is a newer build's
    log, not damage."""
    at = offset - base
    if not 0 <= at <= len(data) - HEADER_BYTES or data[at : at + 4] != MAGIC:
        return None
    if not in_place(data, offset, segment, base=base):
        return None
    _, version, kind, detail, zero, *rest, crc = HEADER.unpack_from(data, at)
    if crc32c(memoryview(data)[at : at + HEADER_BYTES - 4], seed(segment, offset)) != crc:
        return None
    if version != FORMAT_VERSION or zero != 0 or kind not in Kind.__members__.values():
        raise UnknownFormat(
            f"log record of version {version}, kind {kind} in segment {segment}: written by another build; "
            f"this one knows version {FORMAT_VERSION}"
        )
    group, length, term, index, said_segment, said_offset, batch, payload_crc = rest
    return Header(Kind(kind), detail, group, length, term, index, said_segment, said_offset, batch, payload_crc)


def payload_of(data: bytes, header: Header) -> memoryview | None:
    """The record's payload when it is all there and its CRC is right."""
    if header.end > len(data):
        return None
    payload = memoryview(data)[header.payload_offset : header.end]
    return payload if crc32c(payload) == header.crc else None


def find_headers(data: bytes, start: int, segment: int) -> Iterator[Header]:
    """Every header at or after `start` that verifies, wherever it lies: how a reader finds its feet after damage."""
    at = data.find(MAGIC, start)
    while at >= 0:
        header = decode_header(data, at, segment)
        if header is not None:
            yield header
        at = data.find(MAGIC, at + 1)
