"""Headers and payloads of frames: what comes out is what went in; whatever comes from outside is checked."""

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.core.configuration import encode_configuration
from consensus.core.errors import InvariantViolated
from consensus.core.interface import (
    AppendRequest,
    AppendResponse,
    CampaignNow,
    Configuration,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatResponse,
    Home,
    ReadRequest,
    ReadResponse,
    RejoinRequest,
    RejoinResponse,
    Removed,
    SnapshotMeta,
    SnapshotOffer,
    VoteRequest,
    VoteResponse,
)
from consensus.transport.codec import (
    CHECK_BYTES,
    ENTRY_HEADER_BYTES,
    ROW_BYTES,
    carried_bytes,
    decode,
    encode,
    verified,
)
from consensus.transport.errors import BadFrame, TransportError
from consensus.transport.interface import (
    AsleepRow,
    Envelope,
    NodeHeartbeat,
    NodeHeartbeatAnswer,
    Report,
    SnapshotAnswer,
    SnapshotChunk,
    SnapshotRequest,
)
from consensus.v1 import consensus_pb2 as pb

INCARNATION = 12
HOME = Home(70000, 4, b"f" * 16, "host-4:7000")
JOINT = Configuration((1, 70000), (3,), outgoing=(1, 2), homes=(HOME,), next_replica=70001)
META = SnapshotMeta(7, 2, JOINT, "s7-t2-n1-i1", 11)
BASE = {"sender": 1, "to": 2, "term": 9, "incarnation": INCARNATION}


def entry(index: int, payload: bytes, kind: EntryKind = EntryKind.NORMAL) -> Entry:
    return Entry(4, index, kind, payload, crc32c(payload))


MESSAGES = [
    VoteRequest(**BASE, pre=True, last_index=5, last_term=4),
    VoteRequest(**BASE, pre=False, last_index=5, last_term=4, transfer=True),
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
    AppendResponse(**BASE, rejected=False, match_index=3, forgetful=True),
    Heartbeat(**BASE, commit=3, round=1, quiesce=True),
    HeartbeatResponse(**BASE, round=8, match_index=2, forgetful=True),
    CampaignNow(**BASE, last_index=2**40),
    ReadRequest(**BASE, token=77),
    ReadResponse(**BASE, token=77, index=9, age_ms=3),
    ReadResponse(**BASE, token=78, refused=True),
    Removed(**BASE, index=12),
    RejoinRequest(**BASE),
    RejoinResponse(**BASE, last_index=99, for_incarnation=4),
]
ENTRIES = next(message for message in MESSAGES if isinstance(message, AppendRequest) and message.entries)
BEAT = next(message for message in MESSAGES if isinstance(message, Heartbeat))
"""Messages of groups."""
PAIR = [
    NodeHeartbeat(incarnation=12),
    NodeHeartbeat(
        incarnation=12,
        rows=(Envelope(1, Heartbeat(**BASE, commit=3, round=4)), Envelope(2, Heartbeat(**BASE, commit=0, round=1))),
        asleep=2,
        asleep_hash=2**64 - 1,
        listed=True,
        asleep_rows=(AsleepRow(3, 1, 70000, 9, 14), AsleepRow(4, 2, 1, 1, 0)),
    ),
    NodeHeartbeatAnswer(incarnation=12),
    NodeHeartbeatAnswer(
        incarnation=12,
        rows=(Envelope(1, HeartbeatResponse(**BASE, round=4, match_index=3), b"digests"),),
        differs=True,
        differing=(3, 4),
    ),
]
"""Messages of a pair of nodes."""


def received(envelopes: Sequence[Envelope]) -> tuple[Envelope, ...]:
    header, payloads = encode(envelopes)
    return decode(header, memoryview(b"".join(payloads)), INCARNATION)


def sound(envelopes: Sequence[Envelope]) -> list[Envelope]:
    """What arrives of them."""
    *_, last = verified(received(envelopes), Counter())
    assert last is not None
    return last


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_message_survives_the_way(message) -> None:  # type: ignore[no-untyped-def]
    assert sound([Envelope(7, message, b"note")]) == [Envelope(7, message, b"note")]


@pytest.mark.parametrize("message", PAIR, ids=lambda message: type(message).__name__)
def test_what_a_pair_of_nodes_says_survives_the_way(message) -> None:  # type: ignore[no-untyped-def]
    assert sound([Envelope(0, message)]) == [Envelope(0, message)]


def test_rows_between_nodes_count_as_carried() -> None:
    assert carried_bytes(PAIR[0]) == 0
    assert carried_bytes(PAIR[1]) == 4 * ROW_BYTES
    assert carried_bytes(PAIR[3]) == 3 * ROW_BYTES + len(b"digests")


def test_many_messages_share_a_frame_in_order() -> None:
    envelopes = [Envelope(group, message) for group in range(3) for message in [*MESSAGES, *PAIR]]
    assert sound(envelopes) == envelopes


def test_payloads_are_views_into_the_received_bytes() -> None:
    header, payloads = encode([Envelope(1, ENTRIES)])
    data = b"".join(payloads)
    request = decode(header, memoryview(data), INCARNATION)[0].message
    assert isinstance(request, AppendRequest)
    for one in request.entries:
        if len(one.payload):
            assert isinstance(one.payload, memoryview)
            assert one.payload.obj is data


def test_memoryviews_are_sent_without_being_made_bytes_first() -> None:
    payload = memoryview(bytearray(b"abc" * 10))
    sent = AppendRequest(
        **BASE, previous_index=4, previous_term=3, commit=2, entries=(Entry(4, 5, EntryKind.NORMAL, payload, 1),)
    )
    assert encode([Envelope(1, sent)])[1][0] is payload
    assert carried_bytes(sent) == 30 + ENTRY_HEADER_BYTES


def test_damaged_payloads_are_dropped_and_counted_and_the_rest_is_not() -> None:
    header, payloads = encode([Envelope(1, MESSAGES[0]), Envelope(1, ENTRIES), Envelope(1, BEAT)])
    payload = bytearray(b"".join(payloads))
    payload[-1] ^= 1
    dropped: Counter[str] = Counter()
    *_, good = verified(decode(header, memoryview(payload), INCARNATION), dropped)
    assert good == [Envelope(1, MESSAGES[0]), Envelope(1, BEAT)]
    assert dropped == {"payload_damaged": 1}


def test_large_payloads_are_checked_in_pieces() -> None:
    payload = random.Random(1).randbytes(3 * CHECK_BYTES + 5)
    sent = AppendRequest(**BASE, previous_index=4, previous_term=3, commit=2, entries=(entry(5, payload),))
    steps = list(verified(received([Envelope(1, sent)]), Counter()))
    assert steps.count(None) >= 2
    assert steps[-1] == [Envelope(1, sent)]


# --- bad input ------------------------------------------------------------------------------------------------------


def framed(*bodies: pb.Envelope, payload: bytes = b"") -> tuple[bytes, bytes]:
    return pb.Header(envelopes=bodies).SerializeToString(), payload


ENTRY = pb.EntryHeader(term=1, index=1, kind=1, length=4, crc=0)
MEMBERS = encode_configuration(JOINT)
CHUNK_META = pb.SnapshotMeta(index=1, term=1, snapshot_id="ok", size_bytes=1, configuration=MEMBERS)


def chunk_of(configuration: bytes) -> tuple[bytes, bytes]:
    meta = pb.SnapshotMeta(snapshot_id="a", configuration=configuration)
    return framed(pb.Envelope(snapshot_chunk=pb.SnapshotChunk(meta=meta)))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ((b"\xff\xff", b""), "header: not a Header"),
        (framed(*[pb.Envelope()] * 5000), "envelopes: 5000"),
        (framed(pb.Envelope()), "body"),
        (framed(pb.Envelope(note=bytes(4097), heartbeat=pb.Heartbeat())), "note: 4097 bytes"),
        (framed(pb.Envelope(heartbeat=pb.Heartbeat()), payload=b"extra"), "payload: 5 bytes, expected 0"),
        (
            framed(pb.Envelope(append_request=pb.AppendRequest(entries=[ENTRY])), payload=b"abc"),
            "payload: 3 bytes, expected 4",
        ),
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
        (chunk_of(b""), "meta.configuration: a configuration has at least"),
        (chunk_of(MEMBERS[:-1]), "meta.configuration: a configuration of"),
        (chunk_of(MEMBERS + b"x"), "meta.configuration: 1 bytes too many"),
        (chunk_of(b"\x09" + MEMBERS[1:]), "meta.configuration: configuration of version 9"),
        (chunk_of(MEMBERS[:2] + b"\xff\xff" + MEMBERS[4:]), "meta.configuration: a configuration of"),
        (framed(pb.Envelope(campaign_now=pb.CampaignNow(last_index=2**63))), "last_index: 9223372036854775808"),
        (framed(pb.Envelope(read_request=pb.ReadRequest(token=2**64 - 1))), "token"),
        (framed(pb.Envelope(read_response=pb.ReadResponse(index=2**63))), "index"),
        (framed(pb.Envelope(read_response=pb.ReadResponse(age_ms=2**63))), "age_ms"),
        (framed(pb.Envelope(removed=pb.Removed(index=2**63))), "index"),
        (framed(pb.Envelope(rejoin_response=pb.RejoinResponse(last_index=2**63))), "last_index"),
        (framed(pb.Envelope(rejoin_response=pb.RejoinResponse(for_incarnation=2**63))), "for_incarnation"),
        (framed(pb.Envelope(node_heartbeat=pb.NodeHeartbeat(rows=[pb.HeartbeatRow()] * 4097))), "rows: 4097"),
        (
            framed(pb.Envelope(node_heartbeat=pb.NodeHeartbeat(asleep_rows=[pb.AsleepRow()] * 4097))),
            "asleep_rows: 4097",
        ),
        (
            framed(pb.Envelope(node_heartbeat_answer=pb.NodeHeartbeatAnswer(rows=[pb.HeartbeatAnswerRow()] * 4097))),
            "rows: 4097",
        ),
        (
            framed(
                pb.Envelope(
                    node_heartbeat_answer=pb.NodeHeartbeatAnswer(rows=[pb.HeartbeatAnswerRow(note=bytes(4097))])
                )
            ),
            "note: 4097 bytes",
        ),
        (
            framed(pb.Envelope(node_heartbeat_answer=pb.NodeHeartbeatAnswer(differing=[1] * 4097))),
            "differing: 4097",
        ),
        (framed(pb.Envelope(snapshot_request=pb.SnapshotRequest(index=2**63))), "index"),
        (framed(pb.Envelope(report=pb.Report(content=bytes(4097)))), "report: 4097 bytes"),
        (
            framed(pb.Envelope(snapshot_chunk=pb.SnapshotChunk(meta=CHUNK_META, offset=2**64 - 1))),
            "offset: 18446744073709551615",
        ),
    ],
)
def test_bad_frames_are_refused_by_a_message_that_names_the_field(data: tuple[bytes, bytes], words: str) -> None:
    with pytest.raises(BadFrame) as caught:
        decode(data[0], memoryview(data[1]), INCARNATION)
    assert words in str(caught.value)


def judged(header: bytes, payload: bytes) -> None:
    """It is a frame or a bad one, and nothing else happens."""
    try:
        list(verified(decode(header, memoryview(payload), INCARNATION), Counter()))
    except TransportError:
        pass


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=20))
def test_random_bytes_are_a_frame_or_a_bad_frame(header: bytes, payload: bytes) -> None:
    judged(header, payload)


@settings(max_examples=300, deadline=None)
@given(st.integers(min_value=0), st.integers(min_value=0, max_value=255))
def test_damaged_frames_are_a_frame_or_a_bad_frame(position: int, byte: int) -> None:
    header, payloads = encode([Envelope(1, message) for message in [*MESSAGES, *PAIR]])
    data = bytearray(header + b"".join(payloads))
    data[position % len(data)] = byte
    judged(bytes(data[: len(header)]), bytes(data[len(header) :]))
    for length in (position % len(data), 0):
        judged(bytes(data[: min(length, len(header))]), bytes(data[len(header) : length]))


def test_what_never_travels_is_a_bug() -> None:
    with pytest.raises(InvariantViolated):
        encode([Envelope(1, SnapshotOffer(**BASE, meta=META))])
    with pytest.raises(InvariantViolated):
        encode([Envelope(1, MESSAGES[0], bytes(4097))])
    for message in (NodeHeartbeat(incarnation=1, rows=(Envelope(1, MESSAGES[0]),)),):
        with pytest.raises(InvariantViolated):
            encode([Envelope(0, message)])
