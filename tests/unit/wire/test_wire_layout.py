"""Tensors to blocks and back."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramserver.wire.errors import Reason, Refusal
from paramserver.wire.layout import Layout
from paramserver.wire.spec import ModelSpec, TensorSpec, sgd


def layout(*shapes: tuple[int, ...], block_bytes: int = 4096) -> Layout:
    tensors = tuple(TensorSpec(f"t{number}", shape) for number, shape in enumerate(shapes))
    return Layout(ModelSpec("m", tensors, sgd(0.1), 1, block_bytes=block_bytes))


shapes = st.lists(
    st.lists(st.integers(1, 20), max_size=3).map(tuple).filter(lambda shape: len(shape) < 4), min_size=1, max_size=6
)


@given(shapes)
def test_flatten_and_back(found: list[tuple[int, ...]]) -> None:
    place = layout(*found)
    random = np.random.default_rng(0)
    tensors = {f"t{number}": random.random(shape, dtype=np.float32) for number, shape in enumerate(found)}
    flat = place.flatten(tensors)
    assert flat.shape == (place.elements,)
    back = place.unflatten(flat)
    assert list(back) == list(tensors)
    for name, tensor in tensors.items():
        assert back[name].shape == tensor.shape
        assert (back[name] == tensor).all()
        assert np.shares_memory(back[name], flat)


@given(shapes)
def test_every_element_is_in_exactly_one_block_and_one_tensor(found: list[tuple[int, ...]]) -> None:
    place = layout(*found)
    ends = [place.block_slice(block) for block in range(place.blocks)]
    assert ends[0].start == 0
    assert ends[-1].stop == place.elements
    assert all(one.stop == other.start for one, other in pairwise(ends))
    assert sum(place.block_elements(block) for block in range(place.blocks)) == place.elements
    for number in range(len(found)):
        part = place.tensor_slice(number)
        assert place.tensor_at(part.start) == (f"t{number}", 0)
        assert place.tensor_at(part.stop - 1) == (f"t{number}", part.stop - part.start - 1)


def test_blocks_have_their_size_and_the_last_is_shorter() -> None:
    place = layout((2500,))
    assert [place.block_bytes(block) for block in range(place.blocks)] == [4096, 4096, 1808]
    for block in (-1, 3):
        with pytest.raises(Refusal, match="0 to 2"):
            place.block_slice(block)


def test_other_floats_are_cast() -> None:
    flat = layout((2,)).flatten({"t0": np.array([1.5, 2.5], np.float64)})
    assert flat.dtype == np.float32
    assert flat.tolist() == [1.5, 2.5]


def test_a_buffer_can_be_reused() -> None:
    place = layout((2,))
    out = np.empty(2, np.float32)
    assert place.flatten({"t0": np.ones(2, np.float32)}, out) is out
    with pytest.raises(ValueError, match="out"):
        place.flatten({"t0": np.ones(2, np.float32)}, np.empty(3, np.float32))


def test_every_wrong_tensor_is_named() -> None:
    place = layout((2,), (3,), (4,))
    tensors = {"t0": np.ones((2, 1), np.float32), "t1": np.ones(3, np.int64), "other": np.ones(1, np.float32)}
    with pytest.raises(Refusal) as caught:
        place.flatten(tensors)
    assert (caught.value.reason, caught.value.code) == (Reason.SPEC_MISMATCH, "INVALID_ARGUMENT")
    for part in ("'other'", "'t0'", "(2, 1)", "'t1'", "int64", "'t2'"):
        assert part in caught.value.message


# --- many small tensors -----------------------------------------------------------------------------------------------


def many(count: int) -> tuple[Layout, dict[str, np.ndarray]]:
    """Of all kinds of shapes, and values whose bits tell where they belong."""
    random = np.random.default_rng(5)
    shapes = [tuple(int(size) for size in random.integers(1, 5, random.integers(0, 4))) for _ in range(count)]
    place = layout(*shapes)
    values = random.standard_normal(place.elements, dtype=np.float32)
    parts = np.split(values, np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1])
    named = {f"t{number}": part.reshape(shape) for number, (part, shape) in enumerate(zip(parts, shapes, strict=True))}
    return place, named


def one_by_one(place: Layout, tensors: dict[str, np.ndarray]) -> np.ndarray:
    """What flatten means, an element at a time."""
    flat = np.full(place.elements, np.nan, np.float32)
    start = 0
    for tensor in place.spec.tensors:
        for element in np.asarray(tensors[tensor.name]).ravel(order="C"):
            flat[start] = element
            start += 1
    return flat


@pytest.mark.parametrize("count", [1, 2, 10_000])
def test_many_tensors_are_gathered_and_scattered_bit_by_bit(count: int) -> None:
    place, named = many(count)
    flat = place.flatten(named)
    assert flat.tobytes() == one_by_one(place, named).tobytes()
    shuffled = dict(sorted(named.items(), key=lambda item: hash(item[0])))
    out = np.full(place.elements, np.nan, np.float32)
    assert place.flatten(shuffled, out).tobytes() == flat.tobytes(), "by name, whatever their order"
    back = place.unflatten(flat)
    assert list(back) == list(named)
    assert all(
        back[name].shape == part.shape and back[name].tobytes() == part.tobytes() for name, part in named.items()
    )
    back["t0"][...] = 7
    assert flat[0] == 7, "views, not copies"


def test_arrays_that_lie_otherwise_in_memory_are_laid_out_alike() -> None:
    place = layout((3, 4), (5,), (2, 3, 2), ())
    random = np.random.default_rng(6)
    plain = {f"t{number}": random.random(tensor.shape) for number, tensor in enumerate(place.spec.tensors)}
    plain = {name: np.asarray(part, np.float32) for name, part in plain.items()}
    expected = one_by_one(place, plain).tobytes()
    kinds = {
        "fortran": lambda part: np.array(part, order="F"),
        "every other": lambda part: np.repeat(part[..., None], 2, axis=-1)[..., 0],
        "float64": lambda part: part.astype(np.float64),
        "big-endian": lambda part: part.astype(">f4"),
        "a subclass": lambda part: part.view(np.ma.MaskedArray),
        "read-only": lambda part: np.frombuffer(part.tobytes(), np.float32).reshape(part.shape),
    }
    for what, made in kinds.items():
        assert place.flatten({name: made(part) for name, part in plain.items()}).tobytes() == expected, what
    lists = {name: np.asarray(part, np.float64).tolist() for name, part in plain.items()}
    assert place.flatten(lists).tobytes() == expected


def test_one_wrong_tensor_among_many_is_named_and_nothing_was_written() -> None:
    place, named = many(3000)
    out = np.full(place.elements, 3, np.float32)
    wrong: dict[str, object] = {"t7": np.ones((9, 9), np.float32), "t9": np.ones(named["t9"].shape, np.int32)}
    for name, part in wrong.items():
        with pytest.raises(Refusal, match=f"tensor '{name}'"):
            place.flatten({**named, name: part}, out)
    with pytest.raises(Refusal, match="tensor 'more'"):
        place.flatten({**named, "more": named["t0"]}, out)
    without = {name: part for name, part in named.items() if name != "t11"}
    with pytest.raises(Refusal, match=r"tensor 't11'.*nothing"):
        place.flatten(without, out)
    with pytest.raises(Refusal, match="tensor 't11'"):
        place.flatten({**without, "more": named["t11"]}, out)
    assert (out == 3).all()
