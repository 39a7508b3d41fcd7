"""What can still be read of a damaged batch, and which records are lost (RULES W2, W7).

Owns the reading of broken batches. Invariant: whatever is lost is named by group, or `None` is returned, which means
that any group may have been hit. Must not know: what the records mean for a group.
"""

from __future__ import annotations

from dataclasses import dataclass

from consensus.storage.batches import (
    BATCH_BODY,
    BadBatch,
    Row,
    aligned,
    read_body,
    read_rows,
)
from consensus.storage.records import HEADER_BYTES, Header, Kind, decode_header, find_headers, payload_of


@dataclass(frozen=True, slots=True)
class Lost:
    """Records [first, last] of a group that were durable and do not verify any more."""

    group: int
    kind: Kind
    detail: int
    first: int
    last: int
    term: int
    segment: int
    offset: int


@dataclass(frozen=True, slots=True)
class Salvage:
    """A damaged batch's records in their order, and where the next batch starts (bytes)."""

    items: tuple[Header | Lost, ...]
    end: int


def salvage_batch(data: bytes, offset: int, segment: int, batch: int) -> Salvage | None:
    """Read what is left of batch `batch`, which should start at `offset`."""
    length, index_at, count = _opening(data, offset, segment, batch)
    index = _index(data, offset, segment, batch, index_at)
    if index is not None:
        try:
            _, rows = read_rows(data, index)
        except BadBatch:
            return None
        items = tuple(item for row in rows for item in _walk(data, segment, batch, row))
        return Salvage(items, offset + aligned(index.end - offset))
    if length:
        return _without_index(data, offset, segment, batch, length, count)
    return None


def _opening(data: bytes, offset: int, segment: int, batch: int) -> tuple[int, int, int]:
    """Length, place of the index and number of records from the BATCH record; zeros when it is bad."""
    try:
        opening, body = read_body(data, offset, segment, Kind.BATCH)
    except BadBatch:
        return 0, 0, 0
    if opening.batch != batch:
        return 0, 0, 0
    _, length, index_at, count, _ = BATCH_BODY.unpack(body)
    return length, index_at, count


def _index(data: bytes, offset: int, segment: int, batch: int, index_at: int) -> Header | None:
    if index_at:
        header = decode_header(data, offset + index_at, segment)
        candidates = [header] if header is not None else []
    else:
        candidates = [header for header in find_headers(data, offset, segment) if header.batch == batch]
    for header in candidates:
        if header.kind is Kind.INDEX and header.batch == batch and payload_of(data, header) is not None:
            return header
    return None


def _walk(data: bytes, segment: int, batch: int, row: Row) -> list[Header | Lost]:
    """The records of one row. Past a bad header the run's later records can't be told apart, so they count as lost."""
    items: list[Header | Lost] = []
    at = row.offset
    for index in range(row.first, row.last + 1):
        header = decode_header(data, at, segment)
        if header is None or header.batch != batch or header.index != index:
            items.append(Lost(row.group, row.kind, row.detail, index, row.last, row.term, segment, at))
            break
        good = payload_of(data, header) is not None
        lost = Lost(row.group, row.kind, row.detail, index, index, header.term, segment, at)
        items.append(header if good else lost)
        at = header.end
    return items


def _without_index(data: bytes, offset: int, segment: int, batch: int, length: int, count: int) -> Salvage | None:
    items: list[Header | Lost] = []
    at = offset + HEADER_BYTES + BATCH_BODY.size
    for _ in range(count):
        header = decode_header(data, at, segment)
        if header is None or header.batch != batch:
            return None
        good = payload_of(data, header) is not None
        lost = Lost(header.group, header.kind, header.detail, header.index, header.index, header.term, segment, at)
        items.append(header if good else lost)
        at = header.end
    return Salvage(tuple(items), offset + aligned(length))
