"""Batches: what one flush writes, framed so that a reader can tell a whole one from a torn one (RULES W2).

    BATCH record | records ... | INDEX record | zeros up to the next multiple of 4096

Owns the framing and its strict reader; `salvage.py` reads broken ones. Invariants: a batch starts and ends at a
multiple of 4096 bytes, so that writing one never touches a sector of an earlier one; either every byte of it
verifies, padding included, or `read_batch` raises `BadBatch`. Must not know: files, groups' state.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from consensus.core.errors import InvariantViolated
from consensus.core.interface import Payload
from consensus.storage.checksum import crc32c
from consensus.storage.records import (
    HEADER_BYTES,
    PAYLOAD_BYTES_MAX,
    Header,
    Kind,
    Record,
    decode_header,
    encode_header,
    find_headers,
    payload_of,
)

ALIGN_BYTES = 4096
JOIN_BYTES_MAX = 16 << 10
"""Payloads up to this size are copied next to their header; larger ones go to the gathered write as they are."""
BATCH_BODY = struct.Struct("<QQQII")  # known durable batch, length, offset of the index in the batch, records, zero
INDEX_BODY = struct.Struct("<QQII")  # known durable batch, length, records, rows
ROW = struct.Struct("<IBBHQQQQQ")  # group, kind, detail, zero, first, last, term, offset, length


class BadBatch(Exception):
    """Nothing whole at this place; `args[0]` says what was found wrong first."""


@dataclass(frozen=True, slots=True)
class Row:
    """A run of adjacent records of one group, kind, detail and term with consecutive indexes. `offset` and `length` are
    in bytes; `length` counts headers too; `offset` is from the start of the segment."""

    group: int
    kind: Kind
    detail: int
    first: int
    last: int
    term: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Records that will be one batch, and its length in bytes, padding included."""

    records: tuple[Record, ...]
    rows: tuple[Row, ...]
    length: int


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch that verified from its first to its last byte. `end` is where the next one starts."""

    number: int
    durable: int
    offset: int
    end: int
    headers: tuple[Header, ...]


def aligned(length: int) -> int:
    return -(-length // ALIGN_BYTES) * ALIGN_BYTES


RUNS = (Kind.ENTRY, Kind.COPY)
"""Records of these kinds share a row, if they follow each other."""


def rows_of(records: Sequence[Record | Header], lengths: Iterable[int], offset: int) -> tuple[Row, ...]:
    """The index of records that lie one after the other from `offset`; `lengths` are those of their payloads."""
    rows: list[Row] = []
    run: tuple[int, Kind, int, int] | None = None
    first = last = start = size = 0
    for record, length in zip(records, lengths, strict=True):
        this, index, length = (
            (record.group, record.kind, record.detail, record.term),
            record.index,
            length + HEADER_BYTES,
        )
        if this == run and index == last + 1 and record.kind in RUNS:
            size += length
        else:
            if run is not None:
                rows.append(Row(*run[:3], first, last, run[3], start, size))
            run, first, start, size = this, index, offset, length
        last = index
        offset += length
    if run is not None:
        rows.append(Row(*run[:3], first, last, run[3], start, size))
    return tuple(rows)


def payload_offsets(records: Sequence[Record], offset: int) -> Iterator[int]:
    """Where the payload of each record lies in a batch that begins at `offset` of its segment."""
    at = offset + HEADER_BYTES + BATCH_BODY.size
    for record in records:
        at += HEADER_BYTES
        yield at
        at += len(record.payload)


def plan_batch(records: Sequence[Record]) -> Plan:
    lengths = [len(record.payload) for record in records]
    rows = rows_of(records, lengths, HEADER_BYTES + BATCH_BODY.size)
    body = HEADER_BYTES * len(lengths) + sum(lengths)
    framing = HEADER_BYTES + BATCH_BODY.size + HEADER_BYTES + INDEX_BODY.size + ROW.size * len(rows)
    return Plan(tuple(records), rows, aligned(body + framing))


def encode_batch(plan: Plan, *, segment: int, offset: int, batch: int, durable: int) -> list[Payload]:
    """The buffers of one gathered write. Raises `InvariantViolated` when a payload's CRC is not its own (RULES W1: the
    CRC comes with the entry and is checked here, not made here)."""
    body = sum(HEADER_BYTES + len(record.payload) for record in plan.records)
    index_at = HEADER_BYTES + BATCH_BODY.size + body
    length = index_at + HEADER_BYTES + INDEX_BODY.size + ROW.size * len(plan.rows)
    opening = BATCH_BODY.pack(durable, length, index_at, len(plan.records), 0)
    closing = [INDEX_BODY.pack(durable, length, len(plan.records), len(plan.rows))]
    for row in plan.rows:
        places = (row.first, row.last, row.term, offset + row.offset, row.length)
        closing.append(ROW.pack(row.group, row.kind, row.detail, 0, *places))
    index = b"".join(closing)
    framed = [
        Record(kind=Kind.BATCH, payload=opening, crc=crc32c(opening)),
        *plan.records,
        Record(kind=Kind.INDEX, payload=index, crc=crc32c(index)),
    ]
    buffers: list[Payload] = []
    small: list[Payload] = []
    at = offset
    for record in framed:
        check_record(record)
        payload = record.payload
        size = len(payload)
        small.append(encode_header(record, segment=segment, offset=at, batch=batch))
        at += HEADER_BYTES + size
        if size <= JOIN_BYTES_MAX:
            small.append(payload)
        else:
            buffers += [b"".join(small), payload]
            small = []
    small.append(bytes(plan.length - (at - offset)))
    return [*buffers, b"".join(small)]


def check_record(record: Record) -> None:
    payload = record.payload
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise InvariantViolated(f"a record of {len(payload)} bytes; the format ends at {PAYLOAD_BYTES_MAX}")
    if crc32c(payload) != record.crc:
        raise InvariantViolated(
            f"payload of group {record.group} index {record.index} does not match its CRC {record.crc:#010x}: "
            "changed in memory since it was encoded"
        )


def read_batch(data: bytes, offset: int, segment: int, expected: int | None) -> Batch:
    """The whole batch at `offset` of the segment's bytes, number `expected` (None: any). Raises `BadBatch`."""
    opening, body = read_body(data, offset, segment, Kind.BATCH)
    durable, length, index_at, count, _ = BATCH_BODY.unpack(body)
    if expected is not None and opening.batch != expected:
        raise BadBatch(f"batch {opening.batch} where {expected} was expected")
    headers: list[Header] = []
    at = opening.end
    while at < offset + index_at:
        header = decode_header(data, at, segment)
        if header is None or header.batch != opening.batch or payload_of(data, header) is None:
            raise BadBatch(f"record at offset {at} of batch {opening.batch} does not verify")
        headers.append(header)
        at = header.end
    index, _ = read_body(data, offset + index_at, segment, Kind.INDEX)
    count_said, rows = read_rows(data, index)
    expected_rows = rows_of(headers, [header.length for header in headers], opening.end)
    if index.batch != opening.batch or not len(headers) == count == count_said or rows != expected_rows:
        raise BadBatch(f"index of batch {opening.batch} does not list its records")
    end = offset + aligned(length)
    if index.end != offset + length or data[index.end : end] != bytes(end - index.end):
        raise BadBatch(f"batch {opening.batch} does not end at its padding")
    return Batch(opening.batch, durable, offset, end, tuple(headers))


def read_body(data: bytes, offset: int, segment: int, kind: Kind) -> tuple[Header, memoryview]:
    """A record of that kind at that place, with its payload. Raises `BadBatch`."""
    header = decode_header(data, offset, segment)
    payload = payload_of(data, header) if header is not None else None
    if header is None or payload is None or header.kind is not kind:
        raise BadBatch(f"no {kind.name} record at offset {offset}")
    layout = BATCH_BODY if kind is Kind.BATCH else INDEX_BODY if kind is Kind.INDEX else None
    if layout is not None and (len(payload) < layout.size or (kind is Kind.BATCH and len(payload) != layout.size)):
        raise BadBatch(f"{kind.name} record at offset {offset} is {len(payload)} bytes long")
    return header, payload


def read_rows(data: bytes, index: Header) -> tuple[int, tuple[Row, ...]]:
    """How many records a verified INDEX record says its batch has, and their rows. Raises `BadBatch`."""
    payload = memoryview(data)[index.payload_offset : index.end]
    _, _, records, count = INDEX_BODY.unpack_from(payload)
    if len(payload) != INDEX_BODY.size + ROW.size * count:
        raise BadBatch(f"index at offset {index.offset} has {len(payload)} bytes for {count} rows")
    rows = []
    for group, kind, detail, _, first, last, term, offset, length in ROW.iter_unpack(payload[INDEX_BODY.size :]):
        rows.append(Row(group, Kind(kind), detail, first, last, term, offset, length))
    return records, tuple(rows)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What verified records at and after some place tell: the highest batch they say was known durable, the highest
    batch of their own, and where the last of them ends (bytes)."""

    durable: int = 0
    batch: int = 0
    end: int = 0


def gather_evidence(data: bytes, start: int, segment: int) -> Evidence:
    """A bad batch is damage if anything written later says that it was durable, else a torn tail (RULES W2)."""
    durable = batch = end = 0
    for header in find_headers(data, start, segment):
        batch = max(batch, header.batch)
        end = max(end, min(header.end, len(data)))
        if header.kind in (Kind.BATCH, Kind.INDEX):
            payload = payload_of(data, header)
            if payload is not None and len(payload) >= INDEX_BODY.size:
                durable = max(durable, struct.unpack_from("<Q", payload)[0])
    return Evidence(durable, batch, end)


def rows_at(data: bytes, offset: int, segment: int, expected: int) -> tuple[tuple[Row, ...], int]:
    """What batch `expected` at `offset` says that it holds, and where the next one starts. Its records themselves are
    not looked at. Raises `BadBatch`."""
    opening, body = read_body(data, offset, segment, Kind.BATCH)
    _, length, index_at, _, _ = BATCH_BODY.unpack(body)
    index, _ = read_body(data, offset + index_at, segment, Kind.INDEX)
    if opening.batch != expected or index.batch != expected or index.end != offset + length:
        raise BadBatch(f"no batch {expected} at offset {offset}")
    return read_rows(data, index)[1], offset + aligned(length)


def find_batch(data: bytes, start: int, segment: int, *, above: int) -> tuple[int, int]:
    """Where a batch of a number above that one begins, and its number, after a place that can't be read; zeros when
    there is none."""
    for header in find_headers(data, start, segment):
        if header.kind is Kind.BATCH and header.batch > above:
            return header.offset, header.batch
    return 0, 0
