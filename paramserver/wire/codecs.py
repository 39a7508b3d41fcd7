"""How a block of floats becomes bytes and comes back. A seam: float32 is the only codec yet.

Invariants: decoding never allocates before the size of the payload was checked against what the block needs, and
never yields more elements than that. Must not know: what the floats mean.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from paramserver.wire.errors import Reason, Refusal, invalid
from paramserver.wire.layout import FLOAT, Flat


class Codec(IntEnum):
    FP32 = 1
    """Little-endian float32, 4 bytes an element, nothing else."""


_ITEM_BYTES = {Codec.FP32: FLOAT.itemsize}


def payload_bytes(codec: Codec, elements: int) -> int:
    """Bytes of an encoded block of that many elements."""
    return elements * _ITEM_BYTES[codec]


def check_size(codec: int, size_bytes: int, elements: int) -> None:
    """Raises `Refusal` (INVALID_ARGUMENT, both numbers in it) if an encoded block cannot be of that size."""
    if codec != Codec.FP32:
        raise invalid("codec", "FP32", codec)
    expected = payload_bytes(Codec.FP32, elements)
    if size_bytes != expected:
        raise Refusal(
            Reason.INVALID,
            f"payload: expected {expected} bytes ({elements} elements x {FLOAT.itemsize}), received {size_bytes} bytes",
            field="payload",
            expected=f"{expected} bytes",
            received=f"{size_bytes} bytes",
        )


def decode(codec: int, payload: bytes | memoryview, elements: int) -> Flat:
    """The block as float32 (elements,); for FP32 a view of the payload."""
    check_size(codec, len(payload), elements)
    return np.frombuffer(payload, FLOAT)


def encode(codec: Codec, values: Flat) -> memoryview:
    """The block as bytes; for FP32 a view of the array, which must not change while the view is in use."""
    if codec is not Codec.FP32 or values.dtype != FLOAT or not values.flags.c_contiguous:
        raise ValueError(f"cannot encode {values.dtype} as {codec!r}")
    return values.data.cast("B")
