"""How a block of floats becomes bytes and comes back.

    payload = encode(Codec.BF16, gradient)        values = decode(Codec.BF16, payload, gradient.size)

Every codec is a row of `_SCHEMES`, works element by element, rounds to nearest (ties to even), and keeps nothing: equal
floats give equal bytes on every machine (RULES S12). Infinities stay, what is beyond the range becomes infinite, and a
NaN is written in one form (S13). A codec that keeps state (error feedback) wraps these on its worker; one of another
size brings its own bounds to `check_size`, and nobody else asks for more than the functions below.

Invariants: decoding never allocates before the size of the payload was checked against what the block needs, and
never yields more elements than that; what is worked on at a time stays in cache, in scratch memory of the thread. Must
not know: what the floats mean, blocks, frames.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from paramserver.wire.errors import Reason, Refusal, invalid
from paramserver.wire.layout import FLOAT, Flat
from paramserver.wire.spec import BLOCK_BYTES_MAX
from paramserver.wire.spec import Codec as Codec

PIECE_ELEMENTS = 131_072
"""Worked on at once: what is made of an array of 512 KiB on the way stays in the second-level cache. No fewer than
optimizers work on."""

_WORD, _SIGNED = np.dtype("<u4"), np.dtype("<i4")
_SHORT, _SIGNED_SHORT = np.dtype("<u2"), np.dtype("<i2")
_FP16_BIAS = np.float32(2.0**112)
_FP16_INFINITE = np.float32(65536.0)
"""The least power of two that is infinite in half precision."""
if TYPE_CHECKING:
    Shorts: TypeAlias = npt.NDArray[np.uint16]
    """An encoded block, two bytes an element."""


class _Scratch(threading.local):
    def __init__(self) -> None:
        self.words = np.empty(PIECE_ELEMENTS, _WORD)
        self.words2 = np.empty(PIECE_ELEMENTS, _WORD)
        self.floats = (np.empty(PIECE_ELEMENTS, FLOAT), np.empty(PIECE_ELEMENTS, FLOAT))


_scratch = _Scratch()


@dataclass(frozen=True, slots=True)
class _Scheme:
    """One codec of 16 bits. `encode` and `decode` work on at most PIECE_ELEMENTS at a time."""

    infinite_from: float
    """The least magnitude that is written as infinity."""
    exponent: int
    """All of these bits are set in an infinity and in a NaN, and in nothing else."""
    nan: int
    encode: Callable[[Flat, Shorts], None]
    decode: Callable[[Shorts, Flat], None]


def _encode_bf16(values: Flat, out: Shorts) -> None:
    """To nearest: add just below half of what is cut off, and one more if the last bit that stays is odd."""
    bits = values.view(_WORD)
    work = _scratch.words[: values.size]
    np.right_shift(bits, 16, out=work)
    np.bitwise_and(work, 1, out=work)
    np.add(work, bits, out=work)
    np.add(work, 0x7FFF, out=work)
    np.right_shift(work, 16, out=work)
    np.copyto(out, work, casting="unsafe")


def _decode_bf16(shorts: Shorts, out: Flat) -> None:
    bits = out.view(_WORD)
    np.copyto(bits, shorts)
    np.left_shift(bits, 16, out=bits)


def _encode_fp16(values: Flat, out: Shorts) -> None:
    """The addition rounds: where the last bit of `lift` weighs what the last bit of the half weighs, what the sum has
    above `lift` is the half's significand, carry included. Half the time NumPy's own conversion takes, which works
    element by element."""
    bits = values.view(_WORD)
    work, lift = _scratch.words[: values.size], _scratch.words2[: values.size]
    np.bitwise_and(bits, 0x7FFFFFFF, out=work)
    np.minimum(work.view(FLOAT), _FP16_INFINITE, out=work.view(FLOAT))
    np.bitwise_and(work, 0x7F800000, out=lift)
    np.maximum(lift, 113 << 23, out=lift)  # below the least normal half all have its last bit
    np.add(lift, 13 << 23, out=lift)
    np.add(work.view(FLOAT), lift.view(FLOAT), out=work.view(FLOAT))
    np.subtract(work, lift, out=work)
    np.right_shift(lift, 13, out=lift)
    np.add(work, lift, out=work)
    np.right_shift(bits, 16, out=lift)
    np.bitwise_and(lift, 0x8000, out=lift)
    np.add(work, lift, out=work)
    np.copyto(out, work, casting="unsafe")
    np.subtract(out, (126 << 10) & 0xFFFF, out=out)  # exponents from that of the least normal half


def _decode_fp16(shorts: Shorts, out: Flat) -> None:
    """Exponent and significand to their place, with the sign spread over the bits between, which are cleared; then the
    exponent's other bias is a multiplication, which is exact."""
    bits = out.view(_SIGNED)
    np.copyto(bits, shorts.view(_SIGNED_SHORT))
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, ~0x70000000, out=bits)
    np.multiply(out, _FP16_BIAS, out=out)
    exponents = _scratch.words.view(_SHORT)[: shorts.size]
    np.bitwise_and(shorts, 0x7C00, out=exponents)
    if exponents.max() == 0x7C00:  # infinite or NaN
        where = exponents == 0x7C00
        bits[where] |= 0x7F800000


_SCHEMES = {
    Codec.BF16: _Scheme(float.fromhex("0x1.ffp+127"), 0x7F80, 0x7FC0, _encode_bf16, _decode_bf16),
    Codec.FP16: _Scheme(65520.0, 0x7C00, 0x7E00, _encode_fp16, _decode_fp16),
}
LARGEST = {
    Codec.FP32: float.fromhex("0x1.fffffep+127"),
    Codec.BF16: float.fromhex("0x1.fep+127"),
    Codec.FP16: 65504.0,
}
"""The largest number that a codec can write."""
_ITEM_BYTES = {Codec.FP32: FLOAT.itemsize, Codec.BF16: 2, Codec.FP16: 2}


# --- sizes ----------------------------------------------------------------------------------------------------------


def payload_bytes(codec: Codec, elements: int) -> int:
    """Bytes of an encoded block of that many elements."""
    return elements * _ITEM_BYTES[codec]


def check_bound(codec: Codec, size_bytes: int) -> None:
    """Raises `Refusal` (RESOURCE_EXHAUSTED) if a payload of that size could decode to more than any block has."""
    most = payload_bytes(codec, BLOCK_BYTES_MAX // FLOAT.itemsize)
    if size_bytes > most:
        expected = f"at most {most} bytes of {codec.name}, which is a block of {BLOCK_BYTES_MAX} bytes"
        raise invalid("payload", expected, f"{size_bytes} bytes", reason=Reason.TOO_LARGE)


def check_size(codec: int, size_bytes: int, elements: int) -> None:
    """Raises `Refusal` (INVALID_ARGUMENT, both numbers in it) if an encoded block cannot be of that size."""
    known = _known(codec)
    expected = payload_bytes(known, elements)
    if size_bytes != expected:
        raise Refusal(
            Reason.INVALID,
            f"payload: expected {expected} bytes ({elements} elements x {_ITEM_BYTES[known]} of {known.name}), "
            f"received {size_bytes} bytes",
            field="payload",
            expected=f"{expected} bytes",
            received=f"{size_bytes} bytes",
        )


def _known(codec: int) -> Codec:
    try:
        return Codec(codec)
    except ValueError:
        raise invalid("codec", f"one of {', '.join(known.name for known in Codec)}", codec) from None


# --- there and back -------------------------------------------------------------------------------------------------


def encode(codec: Codec, values: Flat, out: npt.NDArray[np.uint8] | None = None) -> memoryview:
    """The block as bytes. For FP32 without `out` a view of the array, which must not change while the view is in use.
    `out`: `payload_bytes` of bytes to write to."""
    if values.dtype != FLOAT or not values.flags.c_contiguous:
        raise ValueError(f"cannot encode {values.dtype} as {codec!r}")
    if codec is Codec.FP32:
        if out is None:
            return values.data.cast("B")
        np.copyto(out.view(FLOAT), values)
        return out.data
    scheme = _SCHEMES[codec]
    if out is None:
        out = np.empty(payload_bytes(codec, values.size), np.uint8)
    shorts: Shorts = out.view(_SHORT)
    with np.errstate(all="ignore"):
        for start in range(0, values.size, PIECE_ELEMENTS):
            piece, to = values[start : start + PIECE_ELEMENTS], shorts[start : start + PIECE_ELEMENTS]
            scheme.encode(piece, to)
            if np.isnan(piece.max()):  # the greatest of them is NaN if one is, and costs little
                to[np.isnan(piece)] = scheme.nan
    return out.data


def decode(codec: int, payload: bytes | memoryview, elements: int, out: Flat | None = None) -> Flat:
    """The block as float32 (elements,); without `out`, for FP32 a view of the payload."""
    return floats(received(codec, payload, elements), out)


def received(codec: int, payload: bytes | memoryview, elements: int) -> Values:
    """The block as it came, to be decoded where it is used: a view of the payload. Raises `Refusal` for a codec that
    there is not, or another size than the block's."""
    check_size(codec, len(payload), elements)
    if codec == Codec.FP32:
        return np.frombuffer(payload, FLOAT)
    return Encoded(Codec(codec), np.frombuffer(payload, _SHORT))


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A block of floats that is not decoded yet."""

    codec: Codec
    shorts: Shorts

    @property
    def size(self) -> int:
        """Elements."""
        return self.shorts.size

    @property
    def payload(self) -> memoryview:
        return self.shorts.data.cast("B")


Values: TypeAlias = "Flat | Encoded"
"""A block of floats (elements,), decoded or not."""


def piece(values: Values, part: slice, scratch: Flat) -> Flat:
    """Some elements, at most PIECE_ELEMENTS: a view, or decoded into the beginning of `scratch`."""
    if not isinstance(values, Encoded):
        return values[part]
    shorts = values.shorts[part]
    out = scratch[: shorts.size]
    _SCHEMES[values.codec].decode(shorts, out)
    return out


def floats(values: Values, out: Flat | None = None) -> Flat:
    """All elements, in `out` if given."""
    if not isinstance(values, Encoded):
        if out is None:
            return values
        np.copyto(out, values)
        return out
    if out is None:
        out = np.empty(values.size, FLOAT)
    decode_piece = _SCHEMES[values.codec].decode
    with np.errstate(all="ignore"):
        for start in range(0, values.size, PIECE_ELEMENTS):
            decode_piece(values.shorts[start : start + PIECE_ELEMENTS], out[start : start + PIECE_ELEMENTS])
    return out


def add(left: Values, right: Values, out: Flat) -> None:
    """left + right, element by element, in fp32. `out` may be one of them."""
    if not isinstance(left, Encoded) and not isinstance(right, Encoded):
        np.add(left, right, out=out)
        return
    one, other = _scratch.floats
    with np.errstate(all="ignore"):
        for start in range(0, out.size, PIECE_ELEMENTS):
            part = slice(start, start + PIECE_ELEMENTS)
            np.add(piece(left, part, one), piece(right, part, other), out=out[part])


# --- what is not finite ---------------------------------------------------------------------------------------------


def finite(values: Values) -> bool:
    """No element is NaN or infinite."""
    if not isinstance(values, Encoded):
        return bool(np.isfinite(values).all())
    exponent = _SCHEMES[values.codec].exponent
    for start in range(0, values.size, PIECE_ELEMENTS):
        part = values.shorts[start : start + PIECE_ELEMENTS]
        work = _scratch.words.view(_SHORT)[: part.size]
        np.bitwise_and(part, exponent, out=work)
        if work.max() == exponent:
            return False
    return True


def first_non_finite(values: Values) -> int:
    """The first element that is NaN or infinite, where there is one."""
    return int(np.argmin(np.isfinite(floats(values))))


def first_beyond(codec: Codec, values: Flat) -> int | None:
    """The first element that would not be finite when it was encoded: NaN, infinite, or beyond the codec's range."""
    limit = _SCHEMES[codec].infinite_from if codec in _SCHEMES else np.inf
    with np.errstate(all="ignore"):
        for start in range(0, values.size, PIECE_ELEMENTS):
            part = values[start : start + PIECE_ELEMENTS]
            # Least and greatest are NaN if one element is, and then no comparison holds.
            if not (part.max() < limit and part.min() > -limit):
                within: Any = np.abs(part) < limit
                return start + int(within.argmin())
    return None
