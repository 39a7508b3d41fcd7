"""The kernels' source, made functions by a C compiler, gives the bits of the codecs; so does what stands in for it."""

from __future__ import annotations

import re

import numpy as np
import pytest

from benchmarks.gpu.checks import hard_floats
from paramserver.wire.codecs import Codec, Encoded, encode, first_beyond, floats
from tests.unit.device.standin import compiled, reference
from worker.device import kernels

THREADS = kernels.THREADS
NAMES = {Codec.BF16: "bf16", Codec.FP16: "fp16"}
KERNEL = {"compiled": compiled.run, "reference": reference.run}


@pytest.mark.parametrize("how", KERNEL)
@pytest.mark.parametrize("codec", NAMES)
@pytest.mark.parametrize("shift", [0, 3])
def test_encode_gives_the_codecs_bits(how: str, codec: Codec, shift: int) -> None:
    values = hard_floats()
    start, stop = shift, values.size - shift
    made = np.full(values.size, 0xA5A5, np.uint16)
    addresses = [values.ctypes.data, made.ctypes.data, start, stop]
    KERNEL[how](f"encode_{NAMES[codec]}", kernels.blocks(start, stop), THREADS, addresses)
    assert made[start:stop].tobytes() == bytes(encode(codec, values[start:stop].copy()))
    assert (made[:start] == 0xA5A5).all()
    assert (made[stop:] == 0xA5A5).all()


@pytest.mark.parametrize("how", KERNEL)
@pytest.mark.parametrize("codec", NAMES)
def test_decode_gives_the_codecs_bits(how: str, codec: Codec) -> None:
    shorts = np.arange(2**16, dtype=np.uint16)
    made = np.empty(2**16, np.float32)
    start, stop = 0, made.size
    addresses = [shorts.ctypes.data, made.ctypes.data, start, stop]
    KERNEL[how](f"decode_{NAMES[codec]}", kernels.blocks(start, stop), THREADS, addresses)
    assert made.tobytes() == floats(Encoded(codec, shorts)).tobytes()


class Table:
    """What `gather` and `scatter` get of some tensors."""

    def __init__(self, tensors: list[np.ndarray]) -> None:
        sizes = [tensor.size for tensor in tensors]
        offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        of, start = kernels.pieces(sizes)
        self.arrays = (
            np.array([tensor.ctypes.data for tensor in tensors], np.uint64),
            np.array([kernels.KINDS[tensor.dtype] for tensor in tensors], np.int32),
            offsets.astype(np.uint64),
            np.array(sizes, np.uint64),
            of,
            start,
        )
        self.blocks, self.elements = len(of), sum(sizes)

    @property
    def addresses(self) -> list[int]:
        return [array.ctypes.data for array in self.arrays]


def tensors() -> list[np.ndarray]:
    random = np.random.default_rng(2)
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    sizes = (1, 5, kernels.PIECE, kernels.PIECE + 1, 3 * kernels.PIECE - 7)
    made = [random.standard_normal(size).astype(kind) for size in sizes for kind in (np.float32, np.float64)]
    return [*made, halves, np.array([1e300, 1e-300, -1e-46, np.inf, np.nan, 1 + 2.0**-24, 1 + 3 * 2.0**-24])]


@pytest.mark.parametrize("how", KERNEL)
@pytest.mark.parametrize("factor", [1.0, 2.0**-15])
def test_gather_gives_what_numpy_does(how: str, factor: float) -> None:
    given = tensors()
    table = Table(given)
    flat, first = np.empty(table.elements, np.float32), np.array([kernels.NOTHING], np.uint64)
    limit = kernels.LIMITS[Codec.FP16]
    addresses = [*table.addresses, flat.ctypes.data, factor, limit, first.ctypes.data]
    KERNEL[how]("gather", table.blocks, THREADS, addresses)
    with np.errstate(all="ignore"):
        expected = np.concatenate([tensor.astype(np.float32) for tensor in given])
        expected = expected * np.float32(factor) if factor != 1 else expected
    assert flat.tobytes() == expected.tobytes()
    assert first[0] == first_beyond(Codec.FP16, expected)


@pytest.mark.parametrize("how", KERNEL)
def test_scatter_is_the_way_back(how: str) -> None:
    flat = hard_floats()[: 3 * kernels.PIECE + 5].copy()
    into = [np.zeros(7, np.float64), np.zeros(2 * kernels.PIECE, np.float32), np.zeros(100, np.float16)]
    table = Table(into)
    KERNEL[how]("scatter", table.blocks, THREADS, [*table.addresses, flat.ctypes.data])
    with np.errstate(all="ignore"):
        assert into[0].tobytes() == flat[:7].astype(np.float64).tobytes()
        assert into[1].tobytes() == flat[7 : 7 + into[1].size].tobytes()
        rest = flat[7 + into[1].size :][:100]
        same = (into[2] == rest.astype(np.float16)) | (np.isnan(into[2]) & np.isnan(rest))
    assert same.all()


def test_a_limit_is_the_least_magnitude_that_is_not_finite_when_encoded() -> None:
    for codec, limit in kernels.LIMITS.items():
        beyond, below = np.array([limit, limit - 1], np.uint32).view(np.float32)
        assert first_beyond(codec, np.array([below, -beyond], np.float32)) == 1
        assert first_beyond(codec, np.array([below, -below], np.float32)) is None


def test_the_source_and_its_callers_agree_on_sizes() -> None:
    assert f"#define PIECE {kernels.PIECE}ull" in kernels.SOURCE
    assert set(compiled.SIGNATURES) == set(kernels.NAMES)
    words = {"P": r"(?:const )?\w+ \*", "U": "u64 ", "u": "u32 ", "f": "float "}
    for name in ("gather", "scatter"):
        parameters = r",\s+".join(rf"{words[letter]}\w+" for letter in compiled.SIGNATURES[name])
        assert re.search(rf"KERNEL void {name}\({parameters}\)", kernels.SOURCE), name


def test_blocks_of_threads_cover_every_element_and_no_more_than_needed() -> None:
    for start, stop in ((0, 1), (0, 1024), (0, 1025), (3, 1025), (1023, 1025), (4, 4 + 1024), (0, 0)):
        count = kernels.blocks(start, stop)
        assert start // 4 + count * THREADS >= -(-stop // 4)
        assert start // 4 + (count - 1) * THREADS < -(-stop // 4) or count == 0
