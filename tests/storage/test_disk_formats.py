"""The formats of docs/formats.md, byte by byte: a change here is a change of version."""

import struct

import pytest
from crc32c import crc32c as reference_crc
from hypothesis import given
from hypothesis import strategies as st

from consensus.core.errors import InvariantViolated
from consensus.core.interface import Configuration, HardState, Home, SnapshotMeta
from consensus.storage.batches import BadBatch, aligned, encode_batch, gather_evidence, plan_batch, read_batch
from consensus.storage.checksum import crc32c
from consensus.storage.interface import Creation
from consensus.storage.records import HEADER_BYTES, Kind, Record, decode_header, encode_header, payload_of
from consensus.storage.tables import (
    NO_FLAGS,
    GroupRow,
    Head,
    HeadFlag,
    Mark,
    SegmentRow,
    decode_creation,
    decode_hard_state,
    decode_head,
    decode_meta,
    encode_creation,
    encode_hard_state,
    encode_head,
    encode_meta,
)

U64 = st.integers(0, 2**64 - 1)
MEMBERS = st.lists(st.integers(1, 2**60), min_size=1, max_size=6, unique=True).map(tuple)
CONFIGURATIONS = st.tuples(MEMBERS, st.integers(1, 6), st.booleans()).map(
    lambda drawn: Configuration(
        drawn[0][: drawn[1]],
        drawn[0][drawn[1] :],
        outgoing=drawn[0][: drawn[1]] if drawn[2] else (),
        homes=(Home(drawn[0][0], 7, b"h" * 16, "host:1"),),
        next_replica=max(drawn[0]) + 1,
    )
)
METAS = st.builds(
    SnapshotMeta,
    U64,
    U64,
    CONFIGURATIONS,
    st.text(st.characters(codec="utf-8"), max_size=40),
    U64,
)
CREATIONS = st.builds(Creation, st.integers(1, 2**62), CONFIGURATIONS)
STATES = st.builds(HardState, U64, U64, U64)
HEADS = st.builds(
    Head,
    cluster=st.binary(min_size=16, max_size=16),
    node=st.integers(0, 2**16),
    node_uuid=st.binary(min_size=16, max_size=16),
    incarnation=U64,
    next_segment=U64,
    flags=st.sampled_from([NO_FLAGS, HeadFlag.UNKNOWN_LOST]),
    peers=st.dictionaries(st.integers(1, 9), st.binary(min_size=16, max_size=16), max_size=4),
    segments=st.lists(st.builds(SegmentRow, U64, U64, U64, U64, U64), max_size=4).map(tuple),
    groups=st.lists(
        st.builds(
            GroupRow,
            st.integers(0, 9),
            st.sampled_from(Mark),
            STATES,
            U64,
            U64,
            U64,
            st.none() | METAS,
            st.none() | CREATIONS,
        ),
        max_size=4,
    ).map(tuple),
    tombstones=st.lists(st.tuples(st.integers(0, 9), U64), max_size=2).map(tuple),
)


def record(index: int, payload: bytes, group: int = 1, term: int = 3) -> Record:
    return Record(kind=Kind.ENTRY, group=group, term=term, index=index, detail=1, payload=payload, crc=crc32c(payload))


@given(HEADS)
def test_heads_come_back(head: Head) -> None:
    raw = encode_head(head)
    assert decode_head(raw) == head
    for bad in (raw[:-1], raw + b"\0", b""):
        with pytest.raises((ValueError, struct.error)):
            decode_head(bad)


@given(METAS, STATES, CREATIONS)
def test_metas_hard_states_and_creations_come_back(meta: SnapshotMeta, state: HardState, create: Creation) -> None:
    assert decode_meta(encode_meta(meta)) == meta
    assert decode_hard_state(encode_hard_state(state)) == state
    assert decode_creation(encode_creation(create)) == create


def test_overlong_metas_are_refused() -> None:
    with pytest.raises(ValueError, match="over the limit"):
        encode_meta(SnapshotMeta(1, 1, Configuration((1,)), "x" * 201))
    with pytest.raises(ValueError, match="more than 1024 members"):
        encode_meta(SnapshotMeta(1, 1, Configuration(tuple(range(1, 1026))), "x"))


def test_the_header_is_as_documented() -> None:
    raw = encode_header(record(7, b"abc"), segment=5, offset=4096, batch=9)
    assert len(raw) == HEADER_BYTES == 64
    assert raw[0:8] == b"PSWL" + bytes([2, 5, 1, 0])
    assert struct.unpack("<II", raw[8:16]) == (1, 3)
    assert struct.unpack("<QQQQQ", raw[16:56]) == (3, 7, 5, 4096, 9)
    assert struct.unpack("<I", raw[56:60])[0] == reference_crc(b"abc")
    seed = reference_crc(struct.pack("<QQ", 5, 4096))
    assert struct.unpack("<I", raw[60:64])[0] == reference_crc(raw[:60], seed)


def test_a_batch_is_as_documented() -> None:
    records = [record(1, b"a" * 10), record(2, b"b" * 20), record(9, b"", group=2)]
    raw = b"".join(encode_batch(plan_batch(records), segment=4, offset=8192, batch=6, durable=5))
    data = bytes(8192) + raw
    assert len(raw) == 4096
    opening = decode_header(data, 8192, 4)
    assert opening is not None
    assert (opening.kind, opening.batch, opening.length) == (Kind.BATCH, 6, 32)
    length = 64 + 32 + (64 + 10) + (64 + 20) + 64 + 64 + 24 + 2 * 48
    index_at = length - 64 - 24 - 2 * 48
    assert payload_of(data, opening) == struct.pack("<QQQII", 5, length, index_at, 3, 0)
    index = decode_header(data, 8192 + index_at, 4)
    assert index is not None
    rows = struct.pack("<IBBHQQQQQ", 1, 5, 1, 0, 1, 2, 3, 8192 + 96, 64 + 10 + 64 + 20)
    rows += struct.pack("<IBBHQQQQQ", 2, 5, 1, 0, 9, 9, 3, 8192 + 96 + 158, 64)
    assert payload_of(data, index) == struct.pack("<QQII", 5, length, 3, 2) + rows
    assert raw[length:] == bytes(4096 - length)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5), st.integers(0, 40_000)), max_size=12),
    st.integers(0, 3),
    U64.filter(bool),
)
def test_batches_come_back(parts: list[tuple[int, int, int]], block: int, number: int) -> None:
    records = [record(index, bytes(size), group, term) for index, (group, term, size) in enumerate(parts, 1)]
    offset = block * 4096
    plan = plan_batch(records)
    raw = b"".join(encode_batch(plan, segment=3, offset=offset, batch=number, durable=number - 1))
    assert len(raw) == plan.length == aligned(plan.length)
    data = bytes(offset) + raw
    batch = read_batch(data, offset, 3, number)
    assert (batch.number, batch.durable, batch.offset, batch.end) == (number, number - 1, offset, len(data))
    found = [(header.group, header.term, header.index, header.length) for header in batch.headers]
    assert found == [(each.group, each.term, each.index, len(each.payload)) for each in records]
    evidence = gather_evidence(data, 0, 3)
    assert (evidence.durable, evidence.batch) == (number - 1, number)
    for wrong in (lambda: read_batch(data, offset, 4, number), lambda: read_batch(data, offset, 3, number - 1)):
        with pytest.raises(BadBatch):
            wrong()


def test_every_flipped_bit_of_a_batch_is_found() -> None:
    raw = b"".join(
        encode_batch(plan_batch([record(1, b"a" * 10), record(2, b"")]), segment=1, offset=0, batch=1, durable=0)
    )
    for offset in range(len(raw)):
        data = bytearray(raw)
        data[offset] ^= 1 << (offset % 8)
        with pytest.raises(BadBatch):
            read_batch(bytes(data), 0, 1, 1)


def test_a_wrong_crc_is_not_written() -> None:
    bad = Record(kind=Kind.ENTRY, group=1, term=1, index=1, detail=1, payload=b"abc", crc=5)
    with pytest.raises(InvariantViolated, match="does not match its CRC"):
        encode_batch(plan_batch([bad]), segment=1, offset=0, batch=1, durable=0)
