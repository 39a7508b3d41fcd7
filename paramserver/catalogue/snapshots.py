"""Group 0's snapshot: a sequence of `CatalogueRecord`, each behind its length (4 bytes, little-endian).

Invariants: the first record is the header with the format's version; records follow in the order in which they are read
back; what `read` returns is what `write` was given. Must not know: files; where records are cut into chunks.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from consensus.core.interface import GroupId, Payload
from consensus.storage.errors import UnknownFormat
from paramserver.catalogue import protos
from paramserver.catalogue.placement import Leftover, Members, Move, Placement
from paramserver.catalogue.sessions import Answer, Session
from paramserver.catalogue.state import (
    InitializationLease,
    Leaving,
    Loaded,
    Model,
    Node,
    Pin,
    PinStage,
    RateChange,
    RateStage,
)
from paramserver.v1 import paramserver_pb2 as pb
from paramserver.wire.protos import spec_from_proto, view_from_proto

FORMAT = 4
READABLE = (1, 2, 3, 4)
"""Format 1 knows no moves, and nothing of members; 2 no changes of learning rates, no pins; 3 nothing of models that
were loaded or deleted."""
CHUNK_BYTES = 256 << 10
RECORD_BYTES_MAX = 8 << 20
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    next_model: int
    next_session: int
    placement: Placement
    sessions: Sequence[Session]
    models: Sequence[Model]
    leaving: Sequence[Leaving] = ()


def write(
    *,
    next_model: int,
    next_session: int,
    placement: Placement,
    sessions: Iterable[Session],
    models: Iterable[Model],
    leaving: Iterable[Leaving] = (),
) -> Iterator[Payload]:
    """Chunks of at most a record more than CHUNK_BYTES."""

    def records() -> Iterator[pb.CatalogueRecord]:
        header = pb.CatalogueHeader(
            format=FORMAT,
            next_model=next_model,
            next_session=next_session,
            next_move=placement.next_move,
            directory=placement.directory,
        )
        yield pb.CatalogueRecord(header=header)
        for node in placement.nodes.values():
            yield pb.CatalogueRecord(node=protos.from_node(node))
        for move in placement.moves.values():
            yield pb.CatalogueRecord(move=protos.from_move(move))
        for leftover in placement.leftovers:
            yield pb.CatalogueRecord(leftover=protos.from_leftover(leftover))
        for group, replica in placement.next_replica.items():
            yield pb.CatalogueRecord(next_replica=pb.NextReplica(group=group, replica=replica))
        for group, members in placement.groups.items():
            yield pb.CatalogueRecord(members=protos.from_members(group, members))
        for session in sessions:
            yield pb.CatalogueRecord(session=_from_session(session))
        for model in models:
            yield pb.CatalogueRecord(model=_from_model(model))
        for gone in leaving:
            record = pb.LeavingRecord(model=gone.model, generation=gone.generation, groups=sorted(gone.groups))
            yield pb.CatalogueRecord(leaving=record)

    chunk = bytearray()
    for record in records():
        raw = record.SerializeToString(deterministic=True)
        chunk += _LENGTH.pack(len(raw)) + raw
        if len(chunk) >= CHUNK_BYTES:
            yield bytes(chunk)
            chunk.clear()
    if chunk:
        yield bytes(chunk)


def read(chunks: Iterable[Payload]) -> Contents:
    """Raises `UnknownFormat`: the files' CRCs were right, so what can't be read is not damage."""
    records = _records(chunks)
    first = next(records, None)
    if first is None or first.WhichOneof("kind") != "header":
        raise UnknownFormat("a catalogue's snapshot begins with a header")
    header = first.header
    if header.format not in READABLE:
        raise UnknownFormat(f"a catalogue's snapshot of format {header.format}; this build reads {READABLE}")
    nodes: list[Node] = []
    sessions: list[Session] = []
    models: list[Model] = []
    moves: list[Move] = []
    leftovers: list[Leftover] = []
    next_replica: dict[GroupId, int] = {}
    groups: dict[GroupId, Members] = {}
    leaving: list[Leaving] = []
    for record in records:
        match record.WhichOneof("kind"):
            case "node":
                nodes.append(protos.to_node(record.node))
            case "session":
                sessions.append(_to_session(record.session))
            case "model":
                models.append(_to_model(record.model))
            case "leaving":
                gone = record.leaving
                leaving.append(Leaving(gone.model, gone.generation, frozenset(gone.groups)))
            case "move":
                moves.append(protos.to_move(record.move))
            case "leftover":
                leftovers.append(protos.to_leftover(record.leftover))
            case "next_replica":
                next_replica[record.next_replica.group] = record.next_replica.replica
            case "members":
                group, members = protos.to_members(record.members)
                groups[group] = members
            case kind:
                raise UnknownFormat(f"an unexpected record in a catalogue's snapshot: {kind}")
    placement = Placement(
        nodes={node.node: node for node in nodes},
        moves={move.move: move for move in moves},
        leftovers=tuple(leftovers),
        groups=groups,
        next_replica=next_replica,
        next_move=header.next_move or 1,
        directory=header.directory or 1,
    )
    return Contents(
        next_model=header.next_model,
        next_session=header.next_session,
        placement=placement,
        sessions=sessions,
        models=models,
        leaving=leaving,
    )


def _records(chunks: Iterable[Payload]) -> Iterator[pb.CatalogueRecord]:
    held = bytearray()
    for chunk in chunks:
        held += chunk
        start = 0
        while len(held) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(held, start)
            if length > RECORD_BYTES_MAX:
                raise UnknownFormat(f"a record of {length} bytes, at most {RECORD_BYTES_MAX}")
            end = start + _LENGTH.size + length
            if len(held) < end:
                break
            yield pb.CatalogueRecord.FromString(bytes(held[start + _LENGTH.size : end]))
            start = end
        del held[:start]
    if held:
        raise UnknownFormat(f"{len(held)} bytes behind the last record")


def _from_session(session: Session) -> pb.SessionRecord:
    return pb.SessionRecord(
        session=session.session,
        client=session.client,
        secret_digest=session.secret_digest,
        name=session.name,
        forgotten=session.forgotten,
        answers=[pb.SessionAnswer(sequence=number, result=_from_answer(answer)) for number, answer in session.answers],
    )


def _to_session(record: pb.SessionRecord) -> Session:
    return Session(
        session=record.session,
        client=record.client,
        secret_digest=record.secret_digest,
        name=record.name,
        forgotten=record.forgotten,
        answers=tuple((one.sequence, _to_answer(one.result)) for one in record.answers),
    )


def _from_answer(answer: Answer) -> pb.CatalogueResult:
    return pb.CatalogueResult(
        ok=answer.ok,
        reason=answer.reason,
        message=answer.message,
        value=answer.value,
        view=pb.View(number=answer.view),
        holder=str(answer.holder),
    )


def _to_answer(result: pb.CatalogueResult) -> Answer:
    return Answer(
        ok=result.ok,
        reason=result.reason,
        message=result.message,
        value=result.value,
        view=result.view.number,
        holder=int(result.holder or 0),
    )


def _from_model(model: Model) -> pb.ModelRecord:
    return pb.ModelRecord(
        description=protos.from_model(model),
        created=sorted(model.created),
        initialization_session=model.initialization.session,
        pin=_from_pin(model.pin),
        loaded=_from_loaded(model.loaded),
    )


def _to_model(record: pb.ModelRecord) -> Model:
    description = record.description
    return Model(
        model=description.model,
        generation=description.generation,
        spec=spec_from_proto(description.spec),
        shards=protos.to_shards(description.shards),
        placement_epoch=description.placement_epoch,
        view=view_from_proto(description.view),
        leases=protos.to_leases(description.ranks),
        created=frozenset(record.created),
        open=description.open,
        initialization=InitializationLease(description.initialization_epoch, record.initialization_session),
        rates=tuple(
            RateChange(one.number, one.step, one.learning_rate, RateStage(one.stage)) for one in description.rates
        ),
        pin=_to_pin(record.pin) if record.HasField("pin") else None,
        loaded=_to_loaded(record.loaded) if record.HasField("loaded") else None,
    )


def _from_loaded(loaded: Loaded | None) -> pb.LoadedRecord | None:
    return None if loaded is None else pb.LoadedRecord(step=loaded.step, rates=protos.from_rates(loaded.rates))


def _to_loaded(record: pb.LoadedRecord) -> Loaded:
    return Loaded(record.step, protos.to_rates(record.rates))


def _from_pin(pin: Pin | None) -> pb.PinRecord | None:
    if pin is None:
        return None
    return pb.PinRecord(number=pin.number, step=pin.step, session=pin.session, stage=int(pin.stage))


def _to_pin(record: pb.PinRecord) -> Pin:
    return Pin(record.number, record.step, record.session, PinStage(record.stage))
