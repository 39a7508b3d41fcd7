"""The commands of a data group's log, as bytes.

Byte 0 is the kind of the command, byte 1 the version of its format. Updates and initial values have a fixed header of
128 bytes, little-endian, and the block's values behind it, so that the buffer a sum ends in *is* the command. A sum is
in the model's codec for the log, initial values are always fp32:

    0 u8 kind   1 u8 format   2 u8 what (gradient, skip, empty)   3 u8 codec   4 u32 flags (bit 0: learning rate given)
    8 u64 model   16 u32 generation   20 u32 block   24 u64 step   32 u64 view   40 u64 initialization epoch
    48 u64 contributors (bit r: rank r)   56 u32 count   60 u32 elements   64 f32 learning rate   68 zeros   128 values

A model that is loaded from a checkpoint gets its values as kind 3: as initial values, with u32 part (0 weights, n the
optimizer's n-th array) at 68, u32 count of the block's numbers at 72, f64 numbers from 80 on.

All others are two bytes and a `ShardCommand` of the .proto. Invariant: `decode(encode(c)) == c`; decoding checks every
range before anything is used and raises only `CommandError`. Must not know: state, leaders, streams.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from paramserver.shard.errors import CommandError
from paramserver.v1 import paramserver_pb2 as pb
from paramserver.wire import codecs
from paramserver.wire.codecs import Codec, Encoded, Values
from paramserver.wire.errors import Refusal
from paramserver.wire.frames import SCALARS_MAX, STEP_MAX, PushKind
from paramserver.wire.layout import FLOAT, Flat
from paramserver.wire.protos import View, shared_spec_proto, spec_from_proto, view_from_proto, view_to_proto
from paramserver.wire.spec import BLOCK_BYTES_MAX, ModelSpec

UPDATE, INITIAL, LOADED, OTHER = 1, 2, 3, 0x10
FORMAT = 1
HEADER_BYTES = 128
_HEADER = struct.Struct("<BBBBIQIIQQQQIIf60x")
_RATE_GIVEN = 1
_PART = struct.Struct("<II")
_PART_AT, _SCALARS_AT = 68, 80


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateBlock:
    """Take `block` from version `step` to `step + 1`. `values` (elements,) is the sum over `contributors`, in `codec`
    once it was encoded; None for a skip and for an empty one. `learning_rate` overrides the optimizer's for this
    step."""

    model: int
    generation: int
    view: int
    block: int
    step: int
    kind: PushKind
    contributors: int
    count: int
    elements: int
    codec: Codec = Codec.FP32
    learning_rate: float | None = None
    values: Values | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InitialBlock:
    """Values of a block before the model is open (RULES M3), under the init lease's `epoch`. Of a model that is loaded
    from a checkpoint they come in parts: weights (0), the optimizer's n-th array (n); `scalars`, with the weights, are
    its numbers of the block."""

    model: int
    generation: int
    epoch: int
    block: int
    elements: int
    values: Flat | None = None
    loaded: bool = False
    part: int = 0
    scalars: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Loaded:
    """The state of a shard comes from a checkpoint: of version `step`, with (step, learning rate), ascending."""

    step: int
    rates: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateShard:
    """The group owns blocks [first_block, first_block + blocks) of this model."""

    model: int
    generation: int
    spec: ModelSpec
    first_block: int
    blocks: int
    placement_epoch: int
    loaded: Loaded | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteShard:
    """Nothing of the model is kept. Every model of an id below `settled` has been created in all its groups."""

    model: int
    generation: int
    settled: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenShard:
    """`check_only`: answer whether it could be opened, change nothing. Group 0 asks every group before it decides."""

    model: int
    generation: int
    epoch: int
    check_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SetView:
    model: int
    generation: int
    view: View


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldShard:
    """No update of `step` or a later one until the change of that `number` (RULES S9). `check_only`: answer what the
    versions are and whether a change could be taken, change nothing."""

    model: int
    generation: int
    number: int
    step: int
    check_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SetRate:
    """The learning rate from `step` on (RULES S11); ends the hold of that number."""

    model: int
    generation: int
    number: int
    step: int
    learning_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PinShard:
    """Keep version `step` of every block, with its slots, until the pin of that number ends (RULES R4)."""

    model: int
    generation: int
    number: int
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpinShard:
    """The pins up to that number end."""

    model: int
    generation: int
    number: int


Small: TypeAlias = CreateShard | OpenShard | SetView | HoldShard | SetRate | PinShard | UnpinShard | DeleteShard
Command: TypeAlias = UpdateBlock | InitialBlock | Small
Buffer: TypeAlias = npt.NDArray[np.uint8]


# --- commands with values -------------------------------------------------------------------------------------------


def new_buffer(elements: int, codec: Codec = Codec.FP32) -> tuple[Buffer, Buffer]:
    """A buffer for a command with that many values, and the view of it where their bytes go; neither is filled."""
    buffer: Buffer = np.empty(HEADER_BYTES + codecs.payload_bytes(codec, elements), np.uint8)
    return buffer, buffer[HEADER_BYTES:]


def encode_update(command: UpdateBlock, buffer: Buffer | None = None) -> memoryview:
    """The command's bytes. With `buffer` (of `new_buffer`, values already in it) only the header is written. The buffer
    must not be written again."""
    if buffer is None:
        size = command.elements if command.kind is PushKind.GRADIENT else 0
        buffer, place = new_buffer(size, command.codec)
        if command.values is not None:
            codecs.encode(command.codec, codecs.floats(command.values), place)
    rate = command.learning_rate
    _HEADER.pack_into(
        buffer.data,
        0,
        UPDATE,
        FORMAT,
        command.kind,
        command.codec,
        0 if rate is None else _RATE_GIVEN,
        command.model,
        command.generation,
        command.block,
        command.step,
        command.view,
        0,
        command.contributors,
        command.count,
        command.elements,
        0.0 if rate is None else rate,
    )
    return _sealed(buffer)


def encode_initial(command: InitialBlock, buffer: Buffer | None = None) -> memoryview:
    """As `encode_update`."""
    if buffer is None:
        buffer, place = new_buffer(command.elements)
        if command.values is None:
            raise ValueError("initial values are missing")
        codecs.encode(Codec.FP32, command.values, place)
    if len(command.scalars) > SCALARS_MAX:
        raise ValueError(f"{len(command.scalars)} numbers of a block, at most {SCALARS_MAX}")
    _HEADER.pack_into(
        buffer.data,
        0,
        LOADED if command.loaded else INITIAL,
        FORMAT,
        PushKind.INITIAL,
        Codec.FP32,
        0,
        command.model,
        command.generation,
        command.block,
        0,
        0,
        command.epoch,
        0,
        0,
        command.elements,
        0.0,
    )
    if command.loaded:
        _PART.pack_into(buffer.data, _PART_AT, command.part, len(command.scalars))
        struct.pack_into(f"<{len(command.scalars)}d", buffer.data, _SCALARS_AT, *command.scalars)
    return _sealed(buffer)


def _sealed(buffer: Buffer) -> memoryview:
    buffer.flags.writeable = False
    return buffer.data


# --- the others -----------------------------------------------------------------------------------------------------


def encode_create(command: CreateShard) -> bytes:
    return _other(create_to_proto(command))


def create_to_proto(command: CreateShard) -> pb.ShardCommand:
    message = pb.CreateShard(
        model=command.model,
        generation=command.generation,
        spec=shared_spec_proto(command.spec),
        first_block=command.first_block,
        blocks=command.blocks,
        placement_epoch=command.placement_epoch,
    )
    if command.loaded is None:
        return pb.ShardCommand(create=message)
    rates = [pb.RateFrom(step=step, learning_rate=rate) for step, rate in command.loaded.rates]
    return pb.ShardCommand(load=pb.LoadShard(create=message, step=command.loaded.step, rates=rates))


def encode_delete(command: DeleteShard) -> bytes:
    message = pb.DeleteShard(model=command.model, generation=command.generation, settled=command.settled)
    return _other(pb.ShardCommand(delete=message))


def encode_open(command: OpenShard) -> bytes:
    message = pb.OpenShard(
        model=command.model,
        generation=command.generation,
        initialization_epoch=command.epoch,
        check_only=command.check_only,
    )
    return _other(pb.ShardCommand(open=message))


def encode_set_view(command: SetView) -> bytes:
    view = view_to_proto(command.view)
    return _other(pb.ShardCommand(set_view=pb.SetView(model=command.model, generation=command.generation, view=view)))


def encode_hold(command: HoldShard) -> bytes:
    message = pb.HoldShard(
        model=command.model,
        generation=command.generation,
        number=command.number,
        step=command.step,
        check_only=command.check_only,
    )
    return _other(pb.ShardCommand(hold=message))


def encode_set_rate(command: SetRate) -> bytes:
    message = pb.SetRate(
        model=command.model,
        generation=command.generation,
        number=command.number,
        step=command.step,
        learning_rate=command.learning_rate,
    )
    return _other(pb.ShardCommand(set_rate=message))


def encode_pin(command: PinShard | UnpinShard) -> bytes:
    if isinstance(command, UnpinShard):
        ended = pb.UnpinShard(model=command.model, generation=command.generation, number=command.number)
        return _other(pb.ShardCommand(unpin=ended))
    message = pb.PinShard(model=command.model, generation=command.generation, number=command.number, step=command.step)
    return _other(pb.ShardCommand(pin=message))


def encode(command: Command) -> bytes | memoryview:
    match command:
        case UpdateBlock():
            return encode_update(command)
        case InitialBlock():
            return encode_initial(command)
        case CreateShard():
            return encode_create(command)
        case OpenShard():
            return encode_open(command)
        case SetView():
            return encode_set_view(command)
        case HoldShard():
            return encode_hold(command)
        case SetRate():
            return encode_set_rate(command)
        case PinShard() | UnpinShard():
            return encode_pin(command)
        case DeleteShard():
            return encode_delete(command)


def _other(message: Any) -> bytes:
    return bytes((OTHER, FORMAT)) + message.SerializeToString()


# --- and back -------------------------------------------------------------------------------------------------------


def decode(payload: bytes | memoryview) -> Command:
    """The command; its values are a view of `payload`. Raises `CommandError`."""
    if len(payload) < 2:
        raise CommandError(f"a command has at least 2 bytes, this one {len(payload)}")
    kind, form = payload[0], payload[1]
    if form != FORMAT:
        raise CommandError(f"format {form} of command kind {kind} is unknown; this server knows {FORMAT}")
    if kind == OTHER:
        return _decode_other(bytes(payload[2:]))
    if kind not in (UPDATE, INITIAL, LOADED):
        raise CommandError(f"command kind {kind} is unknown")
    if len(payload) < HEADER_BYTES:
        raise CommandError(f"a header has {HEADER_BYTES} bytes, here are {len(payload)}")
    return _decode_valued(kind, payload)


@dataclass(frozen=True, slots=True)
class Target:
    """What a command is about. `initial`: everything of the block is replaced; `gradient`: its slots change."""

    model: int
    block: int
    initial: bool
    gradient: bool


def target_of(payload: bytes | memoryview) -> Target | None:
    """Of an update or of initial values, without decoding all of it; None for anything else."""
    if len(payload) < HEADER_BYTES or payload[0] not in (UPDATE, INITIAL, LOADED):
        return None
    _, _, what, _, _, model, _, block, *_ = _HEADER.unpack_from(payload)
    return Target(model, block, payload[0] != UPDATE, what == PushKind.GRADIENT)


def _decode_valued(kind: int, payload: bytes | memoryview) -> UpdateBlock | InitialBlock:
    (_, _, what, codec, flags, model, generation, block, step, view, epoch, contributors, count, elements, rate) = (
        _HEADER.unpack_from(payload)
    )
    if codec not in tuple(Codec) or elements * FLOAT.itemsize > BLOCK_BYTES_MAX:
        raise CommandError(f"codec {codec} with {elements} elements")
    if kind != UPDATE:
        values = _values(payload, elements, codec)
        if isinstance(values, Encoded):
            raise CommandError(f"initial values in codec {codec}; they are FP32 always")
        part, scalars = _part(payload) if kind == LOADED else (0, ())
        return InitialBlock(
            model=model,
            generation=generation,
            epoch=epoch,
            block=block,
            elements=elements,
            values=values,
            loaded=kind == LOADED,
            part=part,
            scalars=scalars,
        )
    if what not in (PushKind.GRADIENT, PushKind.SKIP, PushKind.EMPTY):
        raise CommandError(f"an update is a gradient, a skip or empty, not {what}")
    given = bool(flags & _RATE_GIVEN)
    if given:
        _rate(rate)
    return UpdateBlock(
        model=model,
        generation=generation,
        view=view,
        block=block,
        step=step,
        kind=PushKind(what),
        contributors=contributors,
        count=count,
        elements=elements,
        codec=Codec(codec),
        learning_rate=rate if given else None,
        values=_values(payload, elements if what == PushKind.GRADIENT else 0, codec),
    )


def _part(payload: bytes | memoryview) -> tuple[int, tuple[float, ...]]:
    part, count = _PART.unpack_from(payload, _PART_AT)
    if count > SCALARS_MAX:
        raise CommandError(f"{count} numbers of a block, at most {SCALARS_MAX}")
    scalars = struct.unpack_from(f"<{count}d", payload, _SCALARS_AT)
    if not all(map(math.isfinite, scalars)):
        raise CommandError(f"numbers of a block: {scalars}")
    return part, scalars


def _values(payload: bytes | memoryview, elements: int, codec: int) -> Values | None:
    size_bytes = len(payload) - HEADER_BYTES
    if size_bytes != codecs.payload_bytes(Codec(codec), elements):
        raise CommandError(f"{elements} elements of codec {codec} in {size_bytes} bytes")
    return codecs.received(codec, memoryview(payload)[HEADER_BYTES:], elements) if elements else None


def _decode_other(data: bytes) -> Small:
    message = pb.ShardCommand()
    try:
        message.ParseFromString(data)
        match message.WhichOneof("kind"):
            case "create" | "load":
                return create_from_proto(message)
            case "delete":
                gone = message.delete
                return DeleteShard(model=gone.model, generation=gone.generation, settled=gone.settled)
            case "open":
                opened = message.open
                return OpenShard(
                    model=opened.model,
                    generation=opened.generation,
                    epoch=opened.initialization_epoch,
                    check_only=opened.check_only,
                )
            case "set_view":
                change = message.set_view
                return SetView(model=change.model, generation=change.generation, view=view_from_proto(change.view))
            case "hold":
                hold = message.hold
                return HoldShard(
                    model=hold.model,
                    generation=hold.generation,
                    number=hold.number,
                    step=_step(hold.step),
                    check_only=hold.check_only,
                )
            case "set_rate":
                rate = message.set_rate
                return SetRate(
                    model=rate.model,
                    generation=rate.generation,
                    number=rate.number,
                    step=_step(rate.step),
                    learning_rate=_rate(rate.learning_rate),
                )
            case "pin":
                pin = message.pin
                return PinShard(model=pin.model, generation=pin.generation, number=pin.number, step=_step(pin.step))
            case "unpin":
                ended = message.unpin
                return UnpinShard(model=ended.model, generation=ended.generation, number=ended.number)
            case _:
                raise CommandError("a ShardCommand of an unknown kind")
    except (DecodeError, Refusal) as error:
        raise CommandError(str(error)) from None


def _step(step: int) -> int:
    if step >= STEP_MAX:
        raise CommandError(f"step {step}")
    return step


def _rate(rate: float) -> float:
    if not (math.isfinite(rate) and rate >= 0):
        raise CommandError(f"learning rate {rate}")
    return rate


def create_from_proto(command: pb.ShardCommand) -> CreateShard:
    """Of its `create` or `load`. Raises CommandError, Refusal."""
    loaded: Loaded | None = None
    message = command.create
    if command.HasField("load"):
        message = command.load.create
        rates = tuple((_step(one.step), _rate(one.learning_rate)) for one in command.load.rates)
        if [step for step, _ in rates] != sorted({step for step, _ in rates}):
            raise CommandError("changes of the learning rate out of order")
        loaded = Loaded(_step(command.load.step), rates)
    return CreateShard(
        model=message.model,
        generation=message.generation,
        spec=spec_from_proto(message.spec),
        first_block=message.first_block,
        blocks=message.blocks,
        placement_epoch=message.placement_epoch,
        loaded=loaded,
    )
