"""A data group's whole state as a stream of chunks, and back.

Format 3, little-endian: magic, u32 shards, u32 length and a `ShardsDeleted`; for each shard u32 length and the
`ShardCommand` that creates it, u32 length and a `View`, u32 length and a `ShardSteps`, u8 open, u64 epoch of opening;
for each of its blocks a fixed head, its digests (u64 version, 16 bytes), its scalars (f64), weights, the version before
unless it is the same buffer, slots, what is pinned of it; magic again at the end. Formats 1 and 2 are read too: they
have no `ShardsDeleted` and a bare `CreateShard`, 1 no `ShardSteps`. Chunks may be cut anywhere on the way. Invariants:
loading gives the same digests as were dumped, or raises; nothing of the old state is touched. Must not know: files,
networks.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
from google.protobuf.message import DecodeError

from paramserver.shard.commands import create_from_proto, create_to_proto
from paramserver.shard.deleted import NOTHING_DELETED, Deleted
from paramserver.shard.errors import CommandError, SnapshotDamaged
from paramserver.shard.loans import Loans
from paramserver.shard.state import DIGESTS_KEPT, Kept, Private, Published, Shard, new_shard
from paramserver.shard.steps import Hold, Pin, RateFrom, Steps
from paramserver.v1 import paramserver_pb2 as pb
from paramserver.wire.checksum import DIGEST_BYTES, crc32c
from paramserver.wire.errors import Refusal
from paramserver.wire.layout import FLOAT, Flat
from paramserver.wire.protos import view_from_proto, view_to_proto

MAGIC = b"PSSHARD\x03"
MAGIC_2 = b"PSSHARD\x02"
"""Before models were loaded or deleted."""
MAGIC_1 = b"PSSHARD\x01"
"""Before there was anything bound to steps."""
SHARDS_MAX = 1 << 20
"""A group; bounds what a damaged count makes us do."""
PART_BYTES_MAX = 64 << 20
_COUNT = struct.Struct("<I")
_OPEN = struct.Struct("<BQ")
_BLOCK = struct.Struct(
    "<QQIIBBBBBB2x"
)  # version, initial epoch, crc, previous crc, weights?, previous?, scalars, digests, kept?, parts (0 in formats 1, 2)
_KEPT = struct.Struct("<QI")  # version, crc
_DIGEST = struct.Struct(f"<Q{DIGEST_BYTES}s")
_NONE, _OWN, _SAME = 0, 1, 2

Chunk: TypeAlias = bytes | memoryview


def dump(shards: Sequence[Shard], loans: Loans, deleted: Deleted = NOTHING_DELETED) -> Iterator[Chunk]:
    """The chunks. What they show is the state at the time of this call, however late they are taken, by whichever
    thread. Each block is borrowed until its chunks were used up; a chunk is, when the next one is asked for."""
    captured = [
        (shard.info, list(zip(shard.published, shard.private, shard.kept, shard.lend(loans), strict=True)))
        for shard in shards
    ]

    def chunks() -> Iterator[Chunk]:
        gone = pb.ShardsDeleted(settled=deleted.settled, models=sorted(deleted.models)).SerializeToString()
        yield MAGIC + _COUNT.pack(len(captured)) + _COUNT.pack(len(gone)) + gone
        for info, blocks in captured:
            message = create_to_proto(info.create).SerializeToString()
            view = view_to_proto(info.view).SerializeToString()
            opened = _OPEN.pack(info.is_open, info.open_epoch or 0)
            steps = _steps_to_proto(info.steps).SerializeToString()
            parts = (message, view, steps)
            yield b"".join((*(piece for part in parts for piece in (_COUNT.pack(len(part)), part)), opened))
            blocks.reverse()
            while blocks:
                seen, own, kept, loan = blocks.pop()
                yield from _dump_block(seen, own, kept)
                loan.give_back()
                del seen, own, kept
        yield MAGIC

    return chunks()


def _dump_block(seen: Published, own: Private, kept: Kept | None) -> Iterator[Chunk]:
    if seen.previous is None:
        previous = _NONE
    else:
        previous = _SAME if seen.previous is seen.weights else _OWN
    has_weights = _NONE if seen.weights is None else _OWN
    head = _BLOCK.pack(
        seen.version,
        own.initial_epoch,
        seen.crc,
        seen.previous_crc,
        has_weights,
        previous,
        len(own.scalars),
        len(seen.digests),
        _NONE if kept is None else _SAME if kept.version == seen.version else _OWN,
        own.parts,
    )
    digests = b"".join(_DIGEST.pack(version, known) for version, known in seen.digests)
    yield head + digests + struct.pack(f"<{len(own.scalars)}d", *own.scalars)
    if seen.weights is not None:
        yield seen.weights.data.cast("B")
    if seen.previous is not None and previous == _OWN:
        yield seen.previous.data.cast("B")
    for slot in own.slots:
        yield slot.data.cast("B")
    if kept is not None and kept.version != seen.version:
        yield _KEPT.pack(kept.version, kept.crc) + struct.pack(f"<{len(kept.scalars)}d", *kept.scalars)
        for array in (kept.weights, *kept.slots):
            yield array.data.cast("B")


def load(chunks: Iterator[memoryview]) -> tuple[list[Shard], Deleted]:
    """The shards, and what was deleted. Raises `SnapshotDamaged` for anything that `dump` cannot have written."""
    reader = _Reader(chunks)
    try:
        magic = reader.take(len(MAGIC))
        if magic not in (MAGIC, MAGIC_1, MAGIC_2):
            raise SnapshotDamaged("not a snapshot of a data group, or of a newer format")
        count, gone = reader.count(SHARDS_MAX), pb.ShardsDeleted()
        if magic == MAGIC:
            gone.ParseFromString(reader.take(reader.count(PART_BYTES_MAX)))
        shards = [_load_shard(reader, magic) for _ in range(count)]
        if reader.take(len(MAGIC)) != magic or not reader.at_end():
            raise SnapshotDamaged("the snapshot does not end where it should")
    except (CommandError, DecodeError, Refusal, struct.error, ValueError) as error:
        raise SnapshotDamaged(f"the snapshot does not decode: {error}") from None
    return shards, Deleted(gone.settled, frozenset(gone.models))


def _load_shard(reader: _Reader, magic: bytes) -> Shard:
    create_message, view_message, steps_message = pb.ShardCommand(), pb.View(), pb.ShardSteps()
    raw = reader.take(reader.count(PART_BYTES_MAX))
    if magic == MAGIC:
        create_message.ParseFromString(raw)
    else:
        create_message.create.ParseFromString(raw)
    view_message.ParseFromString(reader.take(reader.count(PART_BYTES_MAX)))
    if magic != MAGIC_1:
        steps_message.ParseFromString(reader.take(reader.count(PART_BYTES_MAX)))
    create = create_from_proto(create_message)
    if create.spec.validate() or create.blocks < 1:
        raise SnapshotDamaged(f"model {create.model}: the spec is not valid")
    shard = new_shard(create)
    if create.first_block + create.blocks > shard.info.layout.blocks:
        raise SnapshotDamaged(f"model {create.model}: blocks outside the model")
    is_open, epoch = _OPEN.unpack(reader.take(_OPEN.size))
    shard.info = replace(
        shard.info,
        view=view_from_proto(view_message),
        open_epoch=epoch if is_open else None,
        steps=_steps_from_proto(steps_message),
    )
    for index in range(create.blocks):
        _load_block(reader, shard, index)
    return shard


def _steps_to_proto(steps: Steps) -> pb.ShardSteps:
    return pb.ShardSteps(
        hold_number=steps.hold.number if steps.hold is not None else 0,
        hold_step=steps.hold.step if steps.hold is not None else 0,
        rate_number=steps.rate_number,
        rates=[pb.RateFrom(step=one.step, learning_rate=one.learning_rate) for one in steps.rates],
        pin_number=steps.pin.number if steps.pin is not None else 0,
        pin_step=steps.pin.step if steps.pin is not None else 0,
        pins_ended=steps.pins_ended,
    )


def _steps_from_proto(message: pb.ShardSteps) -> Steps:
    hold = Hold(message.hold_number, message.hold_step) if message.hold_number else None
    rates = tuple(RateFrom(one.step, one.learning_rate) for one in message.rates)
    pin = Pin(message.pin_number, message.pin_step) if message.pin_number else None
    return Steps(hold, message.rate_number, rates, pin, message.pins_ended)


def _load_block(reader: _Reader, shard: Shard, index: int) -> None:
    version, epoch, crc, previous_crc, has_weights, previous_kind, scalars, digests, kept_kind, parts = _BLOCK.unpack(
        reader.take(_BLOCK.size)
    )
    if digests > DIGESTS_KEPT or has_weights > _OWN or max(previous_kind, kept_kind) > _SAME:
        raise SnapshotDamaged(f"block {index}: the head is not ours")
    known = tuple(_DIGEST.unpack(reader.take(_DIGEST.size)) for _ in range(digests))
    numbers = struct.unpack(f"<{scalars}d", reader.take(8 * scalars))
    if not has_weights:
        return
    elements = shard.elements(index)
    weights = reader.floats(elements)
    previous: Flat | None = None
    if previous_kind == _OWN:
        previous = reader.floats(elements)
    elif previous_kind == _SAME:
        previous = weights
    for values, expected in ((weights, crc), (previous, previous_crc)):
        if values is not None and crc32c(values.data.cast("B")) != expected:
            raise SnapshotDamaged(f"model {shard.info.create.model} block {index}: weights do not fit their CRC")
    slots = tuple(reader.floats(elements, writeable=True) for _ in range(shard.slots))
    shard.private[index] = Private(slots, numbers, epoch, parts or 1)
    shard.published[index] = Published(version, weights, crc, previous, previous_crc, known)
    if kept_kind == _SAME:
        shard.kept[index] = Kept(version, weights, crc, slots, numbers)
    elif kept_kind == _OWN:
        shard.kept[index] = _load_kept(reader, shard, index)
    if known and shard.state_digest(index, version, weights) != known[-1][1]:
        raise SnapshotDamaged(f"model {shard.info.create.model} block {index}: digest of version {version} differs")


def _load_kept(reader: _Reader, shard: Shard, index: int) -> Kept:
    version, crc = _KEPT.unpack(reader.take(_KEPT.size))
    count = len(shard.private[index].scalars)
    scalars = struct.unpack(f"<{count}d", reader.take(8 * count))
    elements = shard.elements(index)
    weights = reader.floats(elements)
    if crc32c(weights.data.cast("B")) != crc:
        raise SnapshotDamaged(f"model {shard.info.create.model} block {index}: pinned weights do not fit their CRC")
    return Kept(version, weights, crc, tuple(reader.floats(elements) for _ in range(shard.slots)), scalars)


class _Reader:
    """Takes exact sizes from chunks of any size. Never allocates more than what really arrived, plus one array."""

    def __init__(self, chunks: Iterator[memoryview]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def take(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size:
            part = self._some(size)
            parts.append(bytes(part))
            size -= len(part)
        return b"".join(parts)

    def count(self, bound: int) -> int:
        value = int(_COUNT.unpack(self.take(_COUNT.size))[0])
        if value > bound:
            raise SnapshotDamaged(f"a count of {value}, at most {bound} is possible")
        return value

    def floats(self, elements: int, *, writeable: bool = False) -> Flat:
        values = np.empty(elements, FLOAT)
        target = values.data.cast("B")
        done = 0
        while done < len(target):
            part = self._some(len(target) - done)
            target[done : done + len(part)] = part
            done += len(part)
        values.flags.writeable = writeable
        return values

    def at_end(self) -> bool:
        return not len(self._rest) and all(not len(chunk) for chunk in self._chunks)

    def _some(self, size: int) -> memoryview:
        while not len(self._rest):
            chunk = next(self._chunks, None)
            if chunk is None:
                raise SnapshotDamaged("the snapshot ends too early")
            self._rest = memoryview(chunk).cast("B")
        part, self._rest = self._rest[:size], self._rest[size:]
        return part
