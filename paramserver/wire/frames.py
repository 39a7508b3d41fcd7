"""The frames of the hot path, written and read by hand.

`PushFrame` and `BlockFrame` are {header = 1; payload = 15} in the .proto, payload last. Serializing costs one copy of
the payload, parsing none: the payload is a view of the received message. Any other legal encoding of the same message
goes through the generated parser. Invariants: what `decode_*` returns is in range in every field (enums known, numbers
below their bound, payload no larger than a block); everything else is a `Refusal`. Must not know: gRPC, models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from google.protobuf.message import DecodeError

from paramserver.v1 import paramserver_pb2 as pb
from paramserver.wire.codecs import Codec, check_bound
from paramserver.wire.errors import Reason, Refusal, invalid
from paramserver.wire.protos import enum_value
from paramserver.wire.spec import BLOCK_BYTES_MAX

PROTOCOL = 1
"""`PushHello.protocol`."""
PAYLOAD_BYTES_MAX = BLOCK_BYTES_MAX
HEADER_BYTES_MAX = 4096
MESSAGE_BYTES_MAX = PAYLOAD_BYTES_MAX + HEADER_BYTES_MAX + 16
"""Bound for gRPC's receive limit on the hot path."""
STEP_MAX = 2**62
"""Steps, versions, views and epochs stay below: no sum of two of them overflows anywhere."""
SCALARS_MAX = 6
"""Numbers an optimizer has of a block."""
IDENTITY_BYTES = 16
"""Of a cluster id."""

_HEADER_TAG = 0x0A  # field 1, length-delimited
_PAYLOAD_TAG = 0x7A  # field 15, length-delimited
_EMPTY = memoryview(b"")


class PushKind(IntEnum):
    GRADIENT = 1
    SKIP = 2
    """Makes the whole step a skip: version + 1, nothing else changes (RULES S10)."""
    EMPTY = 3
    """Zeros in the sum, without sending them (RULES S6)."""
    INITIAL = 4


class BlockStatus(IntEnum):
    APPLIED = 1
    DUPLICATE = 2
    STREAM_OPEN = 3
    VALUE = 4
    STORED = 5
    NOT_NEWER = 6
    """A pull asked for newer ones only; `version` is what there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """First frame of a PushPull or Initialize stream: who pushes what under which view, lease and placement."""

    cluster: bytes
    group: int
    model: int
    generation: int
    placement_epoch: int
    view: int = 0
    rank: int = 0
    lease_epoch: int = 0
    want_weights: bool = False
    initialization_epoch: int = 0
    protocol: int = PROTOCOL
    weights_codec: Codec = Codec.FP32
    """Of the weights that come back on this stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PushFrame:
    """One contribution to (block, step), or a stream's `hello` and nothing else. `crc` is the CRC32C of `payload`."""

    block: int = 0
    step: int = 0
    kind: PushKind = PushKind.GRADIENT
    codec: Codec = Codec.FP32
    crc: int = 0
    want_weights: bool = False
    part: int = 0
    """INITIAL, of a model that is loaded: n for the optimizer's n-th array in place of the weights."""
    scalars: tuple[float, ...] = ()
    """With part 0 of such a one: the optimizer's numbers of the block."""
    payload: memoryview | bytes = b""
    hello: Hello | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockFrame:
    """What became of (block, step): the block is at `version` now; `payload`, if any, holds exactly that version. One
    that several streams are told is encoded once, and keeps its bytes as long as one of them has it to write."""

    block: int
    step: int
    version: int
    status: BlockStatus
    codec: Codec = Codec.FP32
    crc: int = 0
    view: int = 0
    term: int = 0
    age_ms: int = 0
    """Of a consistent pull (RULES R2, R3): it held everything acknowledged so long before it was read, or later."""
    scalars: tuple[float, ...] = ()
    """Of a pull of a pinned version: the optimizer's numbers of the block."""
    payload: memoryview | bytes = b""
    encoded: bytes = field(default=b"", init=False, repr=False, compare=False)


def encode_push(frame: PushFrame) -> bytes:
    if frame.hello is not None:
        header = pb.PushHeader(hello=_hello_to_proto(frame.hello))
    else:
        header = pb.PushHeader(
            block=frame.block,
            step=frame.step,
            kind=int(frame.kind),  # type: ignore[arg-type]
            codec=int(frame.codec),  # type: ignore[arg-type]
            crc=frame.crc,
            want_weights=frame.want_weights,
            part=frame.part,
            scalars=frame.scalars,
        )
    return join_frame(header.SerializeToString(), frame.payload)


def decode_push(data: bytes) -> PushFrame:
    """Raises `Refusal` (INVALID_ARGUMENT, RESOURCE_EXHAUSTED) that names the field."""
    header, payload = _split(data, pb.PushHeader, pb.PushFrame)
    if header.HasField("hello"):
        if len(payload):
            raise invalid("payload", "none in a first frame", f"{len(payload)} bytes")
        return PushFrame(hello=_hello_from_proto(header.hello))
    codec = enum_value(Codec, "codec", header.codec or Codec.FP32)
    check_bound(codec, len(payload))
    if len(header.scalars) > SCALARS_MAX or not all(map(math.isfinite, header.scalars)):
        raise invalid("scalars", f"at most {SCALARS_MAX} finite numbers", list(header.scalars[: SCALARS_MAX + 1]))
    return PushFrame(
        block=header.block,
        step=_bounded("step", header.step),
        kind=enum_value(PushKind, "kind", header.kind),
        codec=codec,
        crc=header.crc,
        want_weights=header.want_weights,
        part=header.part,
        scalars=tuple(header.scalars),
        payload=payload,
    )


def encode_block(frame: BlockFrame) -> bytes:
    if frame.encoded:
        return frame.encoded
    header = pb.BlockHeader(
        block=frame.block,
        step=frame.step,
        version=frame.version,
        status=int(frame.status),  # type: ignore[arg-type]
        codec=int(frame.codec),  # type: ignore[arg-type]
        crc=frame.crc,
        view=frame.view,
        term=frame.term,
        age_ms=frame.age_ms,
        scalars=frame.scalars,
    )
    data = join_frame(header.SerializeToString(), frame.payload)
    object.__setattr__(frame, "encoded", data)  # a memory of what follows from the rest: the frame is what it was
    return data


def decode_block(data: bytes) -> BlockFrame:
    """Raises `Refusal` (INVALID_ARGUMENT, RESOURCE_EXHAUSTED) that names the field."""
    header, payload = _split(data, pb.BlockHeader, pb.BlockFrame)
    codec = enum_value(Codec, "codec", header.codec or Codec.FP32)
    check_bound(codec, len(payload))
    return BlockFrame(
        block=header.block,
        step=_bounded("step", header.step),
        version=_bounded("version", header.version),
        status=enum_value(BlockStatus, "status", header.status),
        codec=codec,
        crc=header.crc,
        view=_bounded("view", header.view),
        term=header.term,
        age_ms=_bounded("age_ms", header.age_ms),
        scalars=tuple(header.scalars),
        payload=payload,
    )


# --- the two fields by hand -----------------------------------------------------------------------------------------


def join_frame(header: bytes, payload: bytes | memoryview) -> bytes:
    """{header = 1; payload = 15} as one message; copies the payload once. An empty payload is left out, as protobuf
    does."""
    prefix = b"\x0a" + _varint(len(header)) + header
    if not len(payload):
        return prefix
    return b"".join((prefix, b"\x7a", _varint(len(payload)), payload))


def split_frame(data: bytes) -> tuple[memoryview, memoryview] | None:
    """(header, payload) as views if `data` has exactly the shape that `join_frame` writes, else None."""
    view = memoryview(data)
    if not data or data[0] != _HEADER_TAG:
        return None
    length, start = _read_varint(data, 1)
    end = start + length
    if length < 0 or end > len(data):
        return None
    if end == len(data):
        return view[start:end], _EMPTY
    if data[end] != _PAYLOAD_TAG:
        return None
    size, payload_start = _read_varint(data, end + 1)
    if size < 0 or payload_start + size != len(data):
        return None
    return view[start:end], view[payload_start:]


def _split(data: bytes, header_kind: Any, frame_kind: Any) -> tuple[Any, memoryview]:
    parts = split_frame(data)
    try:
        if parts is not None:
            header, payload = header_kind(), parts[1]
            header.ParseFromString(parts[0])
        else:
            frame = frame_kind()
            frame.ParseFromString(data)
            header, payload = frame.header, memoryview(frame.payload)
    except DecodeError:
        raise Refusal(
            Reason.INVALID,
            f"frame: expected a {frame_kind.DESCRIPTOR.name} message, received {len(data)} bytes that are none",
            field="frame",
            expected=frame_kind.DESCRIPTOR.name,
            received=f"{len(data)} bytes",
        ) from None
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise invalid("payload", f"at most {PAYLOAD_BYTES_MAX} bytes", f"{len(payload)} bytes", reason=Reason.TOO_LARGE)
    return header, payload


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """(value, next position); value -1 when there is none of at most five bytes."""
    value = 0
    for shift in range(0, 35, 7):
        if at >= len(data):
            return -1, at
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    return -1, at


# --- hello ----------------------------------------------------------------------------------------------------------


def _hello_to_proto(hello: Hello) -> Any:
    return pb.PushHello(
        cluster=hello.cluster,
        group=hello.group,
        model=hello.model,
        generation=hello.generation,
        placement_epoch=hello.placement_epoch,
        view=hello.view,
        rank=hello.rank,
        lease_epoch=hello.lease_epoch,
        want_weights=hello.want_weights,
        initialization_epoch=hello.initialization_epoch,
        protocol=hello.protocol,
        weights_codec=int(hello.weights_codec),  # type: ignore[arg-type]
    )


def _hello_from_proto(message: Any) -> Hello:
    if message.protocol != PROTOCOL:
        raise invalid("hello.protocol", str(PROTOCOL), message.protocol)
    if len(message.cluster) != IDENTITY_BYTES:
        raise invalid("hello.cluster", f"{IDENTITY_BYTES} bytes", f"{len(message.cluster)} bytes")
    return Hello(
        cluster=message.cluster,
        group=message.group,
        model=_bounded("hello.model", message.model),
        generation=message.generation,
        placement_epoch=_bounded("hello.placement_epoch", message.placement_epoch),
        view=_bounded("hello.view", message.view),
        rank=message.rank,
        lease_epoch=_bounded("hello.lease_epoch", message.lease_epoch),
        want_weights=message.want_weights,
        initialization_epoch=_bounded("hello.initialization_epoch", message.initialization_epoch),
        protocol=message.protocol,
        weights_codec=enum_value(Codec, "hello.weights_codec", message.weights_codec or Codec.FP32),
    )


def _bounded(field: str, value: int) -> int:
    if value >= STEP_MAX:
        raise invalid(field, f"less than {STEP_MAX}", value)
    return value
