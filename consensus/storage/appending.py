"""What is appended to the log, as records and batches.

Owns the order of records within an append (HAZARDS 7), and how many go into a batch. Must not know: segments, files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from consensus.core.interface import Entry, GroupId
from consensus.storage.batches import Plan, plan_batch
from consensus.storage.checksum import crc32c
from consensus.storage.interface import GroupAppend
from consensus.storage.records import HEADER_BYTES, Kind, Record
from consensus.storage.tables import NO_MARKS, Mark, encode_creation, encode_hard_state, encode_meta


def records_of(append: GroupAppend) -> Iterator[Record]:
    """What one group appends, in the order in which it must become durable (HAZARDS 7)."""
    group = append.group
    if append.tombstone:
        yield Record(kind=Kind.TOMBSTONE, group=group, index=append.tombstone)
    if append.forget:
        yield Record(kind=Kind.MARK, group=group, detail=Mark.FORGETFUL)
    if append.create is not None:
        payload = encode_creation(append.create)
        yield Record(kind=Kind.CREATE, group=group, index=append.create.replica, payload=payload, crc=crc32c(payload))
    if append.install is not None:
        meta = encode_meta(append.install)
        place = (append.install.term, append.install.index)
        yield Record(kind=Kind.SNAPSHOT, group=group, term=place[0], index=place[1], payload=meta, crc=crc32c(meta))
    if append.hard_state is not None:
        state = encode_hard_state(append.hard_state)
        place = (append.hard_state.term, append.hard_state.commit)
        yield Record(kind=Kind.HARD_STATE, group=group, term=place[0], index=place[1], payload=state, crc=crc32c(state))
    for entry in append.entries:
        yield entry_record(Kind.ENTRY, group, entry)
    if append.clear_forgetful:
        yield Record(kind=Kind.MARK, group=group, detail=NO_MARKS)


def entry_record(kind: Kind, group: GroupId, entry: Entry) -> Record:
    return Record(kind, group, entry.term, entry.index, entry.kind, entry.payload, entry.crc)


def split(records: Sequence[Record], bytes_max: int) -> Iterator[Plan]:
    """Cut into batches of at most `bytes_max` bytes of records, or of one record that is larger."""
    part: list[Record] = []
    size = 0
    for record in records:
        length = HEADER_BYTES + len(record.payload)
        if part and size + length > bytes_max:
            yield plan_batch(part)
            part, size = [], 0
        part.append(record)
        size += length
    yield plan_batch(part)


def plan_head(head: Record, copies: Sequence[Record] = ()) -> Plan:
    """A segment's first batch: the table twice, so that one bad place never costs it."""
    return plan_batch([head, *copies, head])
