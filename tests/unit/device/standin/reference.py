"""What each kernel has to do, in NumPy, from addresses and numbers as a kernel gets them."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from paramserver.wire.codecs import Codec, Encoded, encode, floats

KINDS = {0: np.float32, 1: np.float16, 2: np.float64}


def at(address: int, count: int, dtype: Any) -> np.ndarray:
    kind = np.dtype(dtype)
    return np.frombuffer((ctypes.c_uint8 * (count * kind.itemsize)).from_address(int(address)), kind)


def run(name: str, blocks: int, threads: int, values: list[Any]) -> None:
    getattr(__import__(__name__, fromlist=["x"]), name)(blocks, threads, *values)


def _tensors(blocks: int, values: list[Any]) -> Any:
    """(kind, tensor's memory, its place) of each piece."""
    addresses, kinds, offsets, sizes, tensors, starts = values
    of, start = at(tensors, blocks, np.int32), at(starts, blocks, np.uint64)
    count = int(of.max()) + 1
    table = [
        at(where, count, kind)
        for where, kind in ((addresses, np.uint64), (kinds, np.int32), (offsets, np.uint64), (sizes, np.uint64))
    ]
    for tensor, first in zip(of, start, strict=True):
        address, kind, offset, size = (int(column[tensor]) for column in table)
        low, high = int(first), min(int(first) + 4096, size)
        yield at(address, size, KINDS[kind])[low:high], slice(offset + low, offset + high), offset + size


def gather(blocks: int, threads: int, *values: Any) -> None:
    *table, flat, factor, limit, first = values
    least = at(first, 1, np.uint64)
    with np.errstate(all="ignore"):
        for tensor, place, end in _tensors(blocks, table):
            made = tensor.astype(np.float32)
            if factor != 1:
                made = made * np.float32(factor)
            at(flat, end, np.float32)[place] = made
            beyond = np.flatnonzero((made.view(np.uint32) & np.uint32(0x7FFFFFFF)) >= limit)
            if len(beyond):
                least[0] = min(least[0], np.uint64(place.start + beyond[0]))


def scatter(blocks: int, threads: int, *values: Any) -> None:
    *table, flat = values
    with np.errstate(all="ignore"):
        for tensor, place, end in _tensors(blocks, table):
            tensor[:] = at(flat, end, np.float32)[place]


def _encode(codec: Codec, blocks: int, threads: int, source: int, target: int, start: int, stop: int) -> None:
    _covered(blocks, threads, start, stop)
    made = np.frombuffer(encode(codec, at(source, stop, np.float32)[start:]), np.uint16)
    at(target, stop, np.uint16)[start:] = made


def _decode(codec: Codec, blocks: int, threads: int, source: int, target: int, start: int, stop: int) -> None:
    _covered(blocks, threads, start, stop)
    at(target, stop, np.float32)[start:] = floats(Encoded(codec, at(source, stop, np.uint16)[start:]))


def _covered(blocks: int, threads: int, start: int, stop: int) -> None:
    assert start // 4 * 4 + blocks * threads * 4 >= stop, "threads for every element"


def encode_bf16(*values: Any) -> None:
    _encode(Codec.BF16, *values)


def encode_fp16(*values: Any) -> None:
    _encode(Codec.FP16, *values)


def decode_bf16(*values: Any) -> None:
    _decode(Codec.BF16, *values)


def decode_fp16(*values: Any) -> None:
    _decode(Codec.FP16, *values)
