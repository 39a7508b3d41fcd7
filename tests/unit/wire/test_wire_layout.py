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
