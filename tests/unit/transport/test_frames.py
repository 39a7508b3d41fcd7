"""Frames and messages: the hand-written path equals the generated one; whatever comes from outside is checked."""

import random
from collections import Counter

import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.core.errors import InvariantViolated
from consensus.core.interface import (
    AppendRequest,
    AppendResponse,
    Configuration,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatResponse,
    SnapshotMeta,
    SnapshotOffer,
    VoteRequest,
    VoteResponse,
)
from consensus.transport.codec import CHECK_BYTES, ENTRY_HEADER_BYTES, Origin, carried_bytes, decode, encode, verified
from consensus.transport.errors import BadFrame, TransportError
from consensus.transport.frames import join_frame, split_frame
from consensus.transport.interface import Envelope, Report, SnapshotAnswer, SnapshotChunk, SnapshotRequest
from consensus.v1 import consensus_pb2 as pb

ORIGIN = Origin(b"c" * 16, 3, b"u" * 16, 12)
META = SnapshotMeta(7, 2, Configuration((1, 2), (3,)), "s7-t2-n1-i1", 11)
BASE = {"sender": 1, "to": 2, "term": 9, "incarnation": 12}


def entry(index: int, payload: bytes, kind: EntryKind = EntryKind.NORMAL) -> Entry:
    return Entry(4, index, kind, payload, crc32c(payload))


MESSAGES = [
    VoteRequest(**BASE, pre=True, last_index=5, last_term=4),
    VoteResponse(**BASE, pre=False, granted=True),
    AppendRequest(**BASE, previous_index=0, previous_term=0, commit=0),
    AppendRequest(
        **BASE,
        previous_index=4,
        previous_term=3,
        commit=2,
        entries=(entry(5, b""), entry(6, b"six"), entry(7, b"", EntryKind.NOOP), entry(8, b"eight" * 1000)),
    ),
    AppendResponse(**BASE, rejected=True, match_index=3, conflict_index=2, conflict_term=1, last_index=9),
    Heartbeat(**BASE, commit=3, round=2**40),
    HeartbeatResponse(**BASE, round=8, match_index=0),
    SnapshotChunk(**BASE, meta=META, offset=0, data=b"hello world", crc=crc32c(b"hello world"), last=True),
    SnapshotAnswer(**BASE, snapshot_id="s7-t2-n1-i1", next_offset=11, refused=False, installed=True, index=7),
    SnapshotRequest(**BASE, index=7),
    Report(**BASE, content=b"digests"),
]


def sound(received) -> list[Envelope]:  # type: ignore[no-untyped-def]
    *_, last = verified(received, Counter())
    assert last is not None
    return last


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_message_survives_the_way(message) -> None:  # type: ignore[no-untyped-def]
    received = decode(encode(ORIGIN, [Envelope(7, message, b"note")]))
    assert received.origin == ORIGIN
    assert sound(received) == [Envelope(7, message, b"note")]


def test_many_messages_share_a_frame_in_order() -> None:
    envelopes = [Envelope(group, message) for group in range(3) for message in MESSAGES]
    assert sound(decode(encode(ORIGIN, envelopes))) == envelopes


def test_by_hand_equals_the_generated_serializer() -> None:
    data = encode(ORIGIN, [Envelope(1, message) for message in MESSAGES])
    frame = pb.Frame.FromString(data)
    assert frame.SerializeToString(deterministic=True) == data
    assert frame.header.from_node == 3
    assert frame.payload.startswith(b"six" + b"eight")


@pytest.mark.parametrize("order", ["payload first", "header twice", "unknown field"])
def test_another_encoding_of_the_same_frame_is_understood(order: str) -> None:
    data = encode(ORIGIN, [Envelope(1, MESSAGES[3])])
    header, payload = split_frame(data)
    only_header, only_payload = join_frame(header, ()), pb.Frame(payload=bytes(payload)).SerializeToString()
    if order == "payload first":
        other = only_payload + only_header
    elif order == "header twice":
        empty = join_frame(b"", ())
        other = empty + only_header + only_payload
    else:
        other = only_header + b"\x48\x07" + only_payload
    assert sound(decode(other)) == [Envelope(1, MESSAGES[3])]


def test_payloads_are_views_into_the_received_bytes() -> None:
    data = encode(ORIGIN, [Envelope(1, MESSAGES[3])])
    request = sound(decode(data))[0].message
    assert isinstance(request, AppendRequest)
    for received in request.entries:
        if len(received.payload):
            assert isinstance(received.payload, memoryview)
            assert received.payload.obj is data


def test_memoryviews_are_sent_without_being_made_bytes_first() -> None:
    payload = memoryview(bytearray(b"abc" * 10))
    sent = AppendRequest(
        **BASE, previous_index=4, previous_term=3, commit=2, entries=(Entry(4, 5, EntryKind.NORMAL, payload, 1),)
    )
    assert encode(ORIGIN, [Envelope(1, sent)]).endswith(bytes(payload))
    assert carried_bytes(sent) == 30 + ENTRY_HEADER_BYTES


def test_damaged_payloads_are_dropped_and_counted_and_the_rest_is_not() -> None:
    data = bytearray(encode(ORIGIN, [Envelope(1, MESSAGES[0]), Envelope(1, MESSAGES[3]), Envelope(1, MESSAGES[5])]))
    data[-1] ^= 1
    dropped: Counter[str] = Counter()
    *_, good = verified(decode(bytes(data)), dropped)
    assert good == [Envelope(1, MESSAGES[0]), Envelope(1, MESSAGES[5])]
    assert dropped == {"payload_damaged": 1}


def test_large_payloads_are_checked_in_pieces() -> None:
    payload = random.Random(1).randbytes(3 * CHECK_BYTES + 5)
    sent = AppendRequest(**BASE, previous_index=4, previous_term=3, commit=2, entries=(entry(5, payload),))
    steps = list(verified(decode(encode(ORIGIN, [Envelope(1, sent)])), Counter()))
    assert steps.count(None) >= 2
    assert steps[-1] == [Envelope(1, sent)]


# --- bad input ------------------------------------------------------------------------------------------------------


def header(**changes: object) -> pb.Header:
    values: dict[str, object] = {"cluster": b"c" * 16, "node_uuid": b"u" * 16, "from_node": 3, "incarnation": 1}
    return pb.Header(**(values | changes))  # type: ignore[arg-type]


def framed(body: pb.Envelope, payload: bytes = b"") -> bytes:
    return join_frame(header(envelopes=[body]).SerializeToString(), [payload])


ENTRY = pb.EntryHeader(term=1, index=1, kind=1, length=4, crc=0)
CHUNK_META = pb.SnapshotMeta(index=1, term=1, snapshot_id="ok", size_bytes=1)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\xff\xff\xff", "not a Frame"),
        (b"\x0a\x05abc", "not a Frame"),
        (b"", "cluster, node_uuid: 0, 0 bytes"),
        (join_frame(b"\xff\xff", ()), "header: not a Header"),
        (join_frame(header(cluster=b"short").SerializeToString(), ()), "cluster, node_uuid: 5, 16 bytes"),
        (join_frame(header(incarnation=2**64 - 1).SerializeToString(), ()), "incarnation"),
        (join_frame(header(envelopes=[pb.Envelope()] * 5000).SerializeToString(), ()), "envelopes: 5000"),
        (framed(pb.Envelope()), "body"),
        (framed(pb.Envelope(note=bytes(4097), heartbeat=pb.Heartbeat())), "note: 4097 bytes"),
        (framed(pb.Envelope(heartbeat=pb.Heartbeat()), b"extra"), "payload: 5 bytes, expected 0"),
        (framed(pb.Envelope(append_request=pb.AppendRequest(entries=[ENTRY])), b"abc"), "payload: 3 bytes, expected 4"),
        (
            framed(pb.Envelope(append_request=pb.AppendRequest(entries=[pb.EntryHeader(kind=77)]))),
            "entries.kind: 77",
        ),
        (
            framed(pb.Envelope(append_request=pb.AppendRequest(entries=[pb.EntryHeader(kind=1)] * 65537))),
            "entries: 65537",
        ),
        (
            framed(pb.Envelope(append_request=pb.AppendRequest(entries=[pb.EntryHeader(kind=1, length=2**32 - 1)]))),
            "payload: 0 bytes, expected 4294967295",
        ),
        (framed(pb.Envelope(snapshot_answer=pb.SnapshotAnswer(snapshot_id="../etc/passwd"))), "snapshot_id"),
        (framed(pb.Envelope(snapshot_answer=pb.SnapshotAnswer(snapshot_id="a", next_offset=2**63))), "next_offset"),
        (
            framed(
                pb.Envelope(
                    snapshot_chunk=pb.SnapshotChunk(
                        meta=pb.SnapshotMeta(snapshot_id="a", configuration=pb.Configuration(voters=list(range(2000))))
                    )
                )
            ),
            "configuration: 2000 members",
        ),
        (framed(pb.Envelope(snapshot_request=pb.SnapshotRequest(index=2**63))), "index"),
        (framed(pb.Envelope(report=pb.Report(content=bytes(4097)))), "report: 4097 bytes"),
        (
            framed(pb.Envelope(snapshot_chunk=pb.SnapshotChunk(meta=CHUNK_META, offset=2**64 - 1))),
            "offset: 18446744073709551615",
        ),
    ],
)
def test_bad_frames_are_refused_by_a_message_that_names_the_field(data: bytes, words: str) -> None:
    with pytest.raises(BadFrame) as caught:
        decode(data)
    assert words in str(caught.value)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_a_frame_or_a_bad_frame(data: bytes) -> None:
    try:
        decode(data)
    except TransportError:
        pass


@settings(max_examples=300, deadline=None)
@given(st.integers(min_value=0), st.integers(min_value=0, max_value=255))
def test_damaged_frames_are_a_frame_or_a_bad_frame(position: int, byte: int) -> None:
    data = bytearray(encode(ORIGIN, [Envelope(1, message) for message in MESSAGES]))
    data[position % len(data)] = byte
    try:
        list(verified(decode(bytes(data)), Counter()))
    except TransportError:
        pass
    for length in (position % len(data), 0):
        try:
            decode(bytes(data[:length]))
        except TransportError:
            pass


def test_what_never_travels_is_a_bug() -> None:
    with pytest.raises(InvariantViolated):
        encode(ORIGIN, [Envelope(1, SnapshotOffer(**BASE, meta=META))])
    with pytest.raises(InvariantViolated):
        encode(ORIGIN, [Envelope(1, MESSAGES[0], bytes(4097))])
