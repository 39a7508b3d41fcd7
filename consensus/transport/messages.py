"""Bodies of messages: dataclass <-> protobuf, one message at a time.

Owns the mapping of each kind. Invariants: what is no Raft index or term (the core judges those, and counts what it
drops) is checked for range here; payloads are views into the received bytes. Must not know: frames, origins, streams.
"""

from __future__ import annotations

import re

from consensus.core.configuration import decode_configuration, encode_configuration
from consensus.core.errors import InvariantViolated
from consensus.core.interface import (
    AppendRequest,
    AppendResponse,
    CampaignNow,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatResponse,
    Payload,
    ReadRequest,
    ReadResponse,
    RejoinRequest,
    RejoinResponse,
    Removed,
    SnapshotMeta,
    VoteRequest,
    VoteResponse,
)
from consensus.transport.errors import BadFrame
from consensus.transport.interface import (
    NOTE_BYTES_MAX,
    ROWS_MAX,
    AsleepRow,
    Envelope,
    NodeHeartbeat,
    NodeHeartbeatAnswer,
    Report,
    SnapshotAnswer,
    SnapshotChunk,
    SnapshotRequest,
    TransportMessage,
)
from consensus.v1 import consensus_pb2 as pb

NUMBER_MAX = 2**63
"""Terms, indexes, incarnations and offsets from outside are below."""
_SNAPSHOT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_KINDS = {int(kind): kind for kind in EntryKind}


def size_of(payload: Payload) -> int:
    return payload.nbytes if isinstance(payload, memoryview) else len(payload)


# --- out ------------------------------------------------------------------------------------------------------------


def encode_envelope(out: pb.Envelope, envelope: Envelope, payloads: list[Payload]) -> None:
    """Payload bytes are appended to `payloads`, by reference. Notes longer than `NOTE_BYTES_MAX`, and messages that
    never travel, are bugs of the sender's."""
    message = envelope.message
    out.group = envelope.group
    out.from_replica = message.sender
    out.to_replica = message.to
    out.term = message.term
    if envelope.note:
        out.note = _note(envelope.note)
    match message:
        case AppendRequest():
            _encode_append(out.append_request, message, payloads)
        case AppendResponse():
            out.append_response.CopyFrom(
                pb.AppendResponse(
                    rejected=message.rejected,
                    match_index=message.match_index,
                    conflict_index=message.conflict_index,
                    conflict_term=message.conflict_term,
                    last_index=message.last_index,
                    forgetful=message.forgetful,
                )
            )
        case Heartbeat():
            out.heartbeat.CopyFrom(_encode_heartbeat(message))
        case HeartbeatResponse():
            out.heartbeat_response.CopyFrom(_encode_heartbeat_response(message))
        case NodeHeartbeat():
            out.node_heartbeat.CopyFrom(_encode_node_heartbeat(message))
        case NodeHeartbeatAnswer():
            out.node_heartbeat_answer.CopyFrom(_encode_node_heartbeat_answer(message))
        case SnapshotChunk():
            size = size_of(message.data)
            out.snapshot_chunk.CopyFrom(
                pb.SnapshotChunk(
                    meta=_encode_meta(message.meta),
                    offset=message.offset,
                    length=size,
                    crc=message.crc,
                    last=message.last,
                )
            )
            if size:
                payloads.append(message.data)
        case SnapshotAnswer():
            out.snapshot_answer.CopyFrom(
                pb.SnapshotAnswer(
                    snapshot_id=message.snapshot_id,
                    next_offset=message.next_offset,
                    refused=message.refused,
                    installed=message.installed,
                    index=message.index,
                )
            )
        case _:
            _encode_rare(out, message)


def _encode_rare(out: pb.Envelope, message: TransportMessage) -> None:
    match message:
        case VoteRequest():
            out.vote_request.CopyFrom(
                pb.VoteRequest(
                    pre=message.pre,
                    last_index=message.last_index,
                    last_term=message.last_term,
                    transfer=message.transfer,
                )
            )
        case VoteResponse():
            out.vote_response.CopyFrom(pb.VoteResponse(pre=message.pre, granted=message.granted))
        case CampaignNow():
            out.campaign_now.CopyFrom(pb.CampaignNow(last_index=message.last_index))
        case ReadRequest():
            out.read_request.CopyFrom(pb.ReadRequest(token=message.token))
        case ReadResponse():
            out.read_response.CopyFrom(
                pb.ReadResponse(
                    token=message.token, index=message.index, age_ms=message.age_ms, refused=message.refused
                )
            )
        case Removed():
            out.removed.CopyFrom(pb.Removed(index=message.index))
        case RejoinRequest():
            out.rejoin_request.SetInParent()
        case RejoinResponse():
            out.rejoin_response.CopyFrom(
                pb.RejoinResponse(last_index=message.last_index, for_incarnation=message.for_incarnation)
            )
        case SnapshotRequest():
            out.snapshot_request.CopyFrom(pb.SnapshotRequest(index=message.index))
        case Report():
            out.report.CopyFrom(pb.Report(content=_note(message.content)))
        case _:
            raise InvariantViolated(f"{type(message).__name__} never travels")


def _note(note: bytes) -> bytes:
    if len(note) > NOTE_BYTES_MAX:
        raise InvariantViolated(f"a note or report of {len(note)} bytes; at most {NOTE_BYTES_MAX} travel")
    return note


def _encode_append(out: pb.AppendRequest, message: AppendRequest, payloads: list[Payload]) -> None:
    out.SetInParent()
    out.previous_index = message.previous_index
    out.previous_term = message.previous_term
    out.commit = message.commit
    for entry in message.entries:
        size = size_of(entry.payload)
        out.entries.add(term=entry.term, index=entry.index, kind=int(entry.kind), length=size, crc=entry.crc)
        if size:
            payloads.append(entry.payload)


def _encode_heartbeat(message: Heartbeat) -> pb.Heartbeat:
    return pb.Heartbeat(commit=message.commit, round=message.round, quiesce=message.quiesce)


def _encode_heartbeat_response(message: HeartbeatResponse) -> pb.HeartbeatResponse:
    return pb.HeartbeatResponse(round=message.round, match_index=message.match_index, forgetful=message.forgetful)


def _encode_node_heartbeat(message: NodeHeartbeat) -> pb.NodeHeartbeat:
    out = pb.NodeHeartbeat(asleep=message.asleep, asleep_hash=message.asleep_hash, listed=message.listed)
    for envelope in message.rows:
        beat = envelope.message
        if not isinstance(beat, Heartbeat):
            raise InvariantViolated(f"{type(beat).__name__} is no row of a heartbeat between nodes")
        out.rows.add(
            group=envelope.group,
            from_replica=beat.sender,
            to_replica=beat.to,
            term=beat.term,
            heartbeat=_encode_heartbeat(beat),
        )
    for row in message.asleep_rows:
        out.asleep_rows.add(group=row.group, leader=row.leader, replica=row.replica, term=row.term, commit=row.commit)
    return out


def _encode_node_heartbeat_answer(message: NodeHeartbeatAnswer) -> pb.NodeHeartbeatAnswer:
    out = pb.NodeHeartbeatAnswer(differs=message.differs, differing=message.differing)
    for envelope in message.rows:
        answer = envelope.message
        if not isinstance(answer, HeartbeatResponse):
            raise InvariantViolated(f"{type(answer).__name__} is no row of an answer between nodes")
        out.rows.add(
            group=envelope.group,
            from_replica=answer.sender,
            to_replica=answer.to,
            term=answer.term,
            note=_note(envelope.note),
            answer=_encode_heartbeat_response(answer),
        )
    return out


def _encode_meta(meta: SnapshotMeta) -> pb.SnapshotMeta:
    return pb.SnapshotMeta(
        index=meta.index,
        term=meta.term,
        configuration=encode_configuration(meta.configuration),
        snapshot_id=meta.snapshot_id,
        size_bytes=meta.size_bytes,
    )


# --- in -------------------------------------------------------------------------------------------------------------


class Cursor:
    """Hands out the payload piece by piece."""

    __slots__ = ("_at", "_payload")

    def __init__(self, payload: memoryview) -> None:
        self._payload = payload
        self._at = 0

    def take(self, length: int) -> memoryview:
        end = self._at + length
        if end > len(self._payload):
            raise BadFrame(f"payload: {len(self._payload)} bytes, expected {end} or more by the lengths in the header")
        piece = self._payload[self._at : end]
        self._at = end
        return piece

    def done(self) -> None:
        if self._at != len(self._payload):
            raise BadFrame(f"payload: {len(self._payload)} bytes, expected {self._at} by the lengths in the header")


def number(name: str, value: int) -> int:
    if value >= NUMBER_MAX:
        raise BadFrame(f"{name}: {value}, expected less than {NUMBER_MAX}")
    return value


def decode_envelope(envelope: pb.Envelope, incarnation: int, cursor: Cursor) -> Envelope:
    """Raises `BadFrame`. `incarnation`: of the node that sent the frame."""
    _check_note("note", envelope.note)
    return Envelope(envelope.group, _decode_body(envelope, incarnation, cursor), envelope.note)


def _check_note(name: str, note: bytes) -> None:
    if len(note) > NOTE_BYTES_MAX:
        raise BadFrame(f"{name}: {len(note)} bytes, expected at most {NOTE_BYTES_MAX}")


def _decode_body(envelope: pb.Envelope, incarnation: int, cursor: Cursor) -> TransportMessage:
    # Terms, and indexes of Raft messages, are judged by the core, which counts what it drops.
    sender, to, term = envelope.from_replica, envelope.to_replica, envelope.term
    match envelope.WhichOneof("body"):
        case "append_request":
            request = envelope.append_request
            return AppendRequest(
                sender=sender,
                to=to,
                term=term,
                incarnation=incarnation,
                previous_index=request.previous_index,
                previous_term=request.previous_term,
                commit=request.commit,
                entries=tuple(_decode_entry(entry, cursor) for entry in request.entries),
            )
        case "append_response":
            answer = envelope.append_response
            return AppendResponse(
                sender=sender,
                to=to,
                term=term,
                incarnation=incarnation,
                rejected=answer.rejected,
                match_index=answer.match_index,
                conflict_index=answer.conflict_index,
                conflict_term=answer.conflict_term,
                last_index=answer.last_index,
                forgetful=answer.forgetful,
            )
        case "heartbeat":
            return _decode_heartbeat(envelope, envelope.heartbeat, incarnation)
        case "heartbeat_response":
            return _decode_heartbeat_response(envelope, envelope.heartbeat_response, incarnation)
        case "node_heartbeat":
            return _decode_node_heartbeat(envelope.node_heartbeat, incarnation)
        case "node_heartbeat_answer":
            return _decode_node_heartbeat_answer(envelope.node_heartbeat_answer, incarnation)
        case "snapshot_chunk":
            chunk = envelope.snapshot_chunk
            return SnapshotChunk(
                sender=sender,
                to=to,
                term=term,
                incarnation=incarnation,
                meta=_decode_meta(chunk.meta),
                offset=number("offset", chunk.offset),
                data=cursor.take(chunk.length),
                crc=chunk.crc,
                last=chunk.last,
            )
        case "snapshot_answer":
            held = envelope.snapshot_answer
            return SnapshotAnswer(
                sender=sender,
                to=to,
                term=term,
                incarnation=incarnation,
                snapshot_id=_snapshot_id(held.snapshot_id),
                next_offset=number("next_offset", held.next_offset),
                refused=held.refused,
                installed=held.installed,
                index=number("index", held.index),
            )
        case body:
            return _decode_rare(body, envelope, incarnation)


def _decode_rare(body: str | None, envelope: pb.Envelope, incarnation: int) -> TransportMessage:
    sender, to, term = envelope.from_replica, envelope.to_replica, envelope.term
    match body:
        case "vote_request":
            vote = envelope.vote_request
            return VoteRequest(
                sender=sender,
                to=to,
                term=term,
                incarnation=incarnation,
                pre=vote.pre,
                last_index=vote.last_index,
                last_term=vote.last_term,
                transfer=vote.transfer,
            )
        case "vote_response":
            voted = envelope.vote_response
            return VoteResponse(
                sender=sender, to=to, term=term, incarnation=incarnation, pre=voted.pre, granted=voted.granted
            )
        case "campaign_now":
            last_index = number("last_index", envelope.campaign_now.last_index)
            return CampaignNow(sender=sender, to=to, term=term, incarnation=incarnation, last_index=last_index)
        case "read_request":
            token = number("token", envelope.read_request.token)
            return ReadRequest(sender=sender, to=to, term=term, incarnation=incarnation, token=token)
        case "read_response":
            read = envelope.read_response
            return ReadResponse(
                sender=sender,
                to=to,
                term=term,
                incarnation=incarnation,
                token=number("token", read.token),
                index=number("index", read.index),
                age_ms=number("age_ms", read.age_ms),
                refused=read.refused,
            )
        case "removed":
            index = number("index", envelope.removed.index)
            return Removed(sender=sender, to=to, term=term, incarnation=incarnation, index=index)
        case "rejoin_request":
            return RejoinRequest(sender=sender, to=to, term=term, incarnation=incarnation)
        case "rejoin_response":
            rejoin = envelope.rejoin_response
            return RejoinResponse(
                sender=sender,
                to=to,
                term=term,
                incarnation=incarnation,
                last_index=number("last_index", rejoin.last_index),
                for_incarnation=number("for_incarnation", rejoin.for_incarnation),
            )
        case "snapshot_request":
            index = number("index", envelope.snapshot_request.index)
            return SnapshotRequest(sender=sender, to=to, term=term, incarnation=incarnation, index=index)
        case "report":
            content = envelope.report.content
            _check_note("report", content)
            return Report(sender=sender, to=to, term=term, incarnation=incarnation, content=content)
        case _:
            raise BadFrame("body: none that this build knows")


def _decode_heartbeat(row: pb.Envelope | pb.HeartbeatRow, beat: pb.Heartbeat, incarnation: int) -> Heartbeat:
    return Heartbeat(
        sender=row.from_replica,
        to=row.to_replica,
        term=row.term,
        incarnation=incarnation,
        commit=beat.commit,
        round=beat.round,
        quiesce=beat.quiesce,
    )


def _decode_heartbeat_response(
    row: pb.Envelope | pb.HeartbeatAnswerRow, answer: pb.HeartbeatResponse, incarnation: int
) -> HeartbeatResponse:
    return HeartbeatResponse(
        sender=row.from_replica,
        to=row.to_replica,
        term=row.term,
        incarnation=incarnation,
        round=answer.round,
        match_index=answer.match_index,
        forgetful=answer.forgetful,
    )


def _check_rows(name: str, count: int) -> None:
    if count > ROWS_MAX:
        raise BadFrame(f"{name}: {count}, expected at most {ROWS_MAX}")


def _decode_node_heartbeat(message: pb.NodeHeartbeat, incarnation: int) -> NodeHeartbeat:
    _check_rows("rows", len(message.rows))
    _check_rows("asleep_rows", len(message.asleep_rows))
    return NodeHeartbeat(
        incarnation=incarnation,
        rows=tuple(Envelope(row.group, _decode_heartbeat(row, row.heartbeat, incarnation)) for row in message.rows),
        asleep=message.asleep,
        asleep_hash=message.asleep_hash,
        listed=message.listed,
        asleep_rows=tuple(
            AsleepRow(row.group, row.leader, row.replica, row.term, row.commit) for row in message.asleep_rows
        ),
    )


def _decode_node_heartbeat_answer(message: pb.NodeHeartbeatAnswer, incarnation: int) -> NodeHeartbeatAnswer:
    _check_rows("rows", len(message.rows))
    _check_rows("differing", len(message.differing))
    for row in message.rows:
        _check_note("note", row.note)
    return NodeHeartbeatAnswer(
        incarnation=incarnation,
        rows=tuple(
            Envelope(row.group, _decode_heartbeat_response(row, row.answer, incarnation), row.note)
            for row in message.rows
        ),
        differs=message.differs,
        differing=tuple(message.differing),
    )


def _decode_entry(entry: pb.EntryHeader, cursor: Cursor) -> Entry:
    kind = _KINDS.get(entry.kind)
    if kind is None:
        raise BadFrame(f"entries.kind: {entry.kind}, expected one of {sorted(_KINDS)}")
    return Entry(entry.term, entry.index, kind, cursor.take(entry.length), entry.crc)


def _snapshot_id(text: str) -> str:
    """It becomes a file's name."""
    if not _SNAPSHOT_ID.fullmatch(text):
        raise BadFrame("snapshot_id: expected 1 to 100 letters, digits, '.', '_' and '-'")
    return text


def _decode_meta(meta: pb.SnapshotMeta) -> SnapshotMeta:
    try:
        configuration = decode_configuration(meta.configuration)
    except ValueError as error:
        raise BadFrame(f"meta.configuration: {error}") from error
    return SnapshotMeta(
        index=number("meta.index", meta.index),
        term=number("meta.term", meta.term),
        configuration=configuration,
        snapshot_id=_snapshot_id(meta.snapshot_id),
        size_bytes=number("meta.size_bytes", meta.size_bytes),
    )
