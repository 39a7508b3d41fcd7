"""A gradient from a device to host memory: the bits of NumPy, whatever is late, and nothing before all is there."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from paramserver.wire.codecs import Codec, Encoded, encode
from tests.unit.device.helpers import EARLY, KINDS, device_of, late, layout_of, random_gradients
from worker.device.kernels import LIMITS
from worker.device.outgoing import Outgoing
from worker.errors import InvalidArgument

SHAPES = {"a": (40, 50), "b": (3000,), "c": (1,), "d": (2, 3, 4), "e": (5000,)}
BUCKET_BYTES = 4096
CODECS = list(Codec)


def expected(codec: Codec, gradients: dict[str, np.ndarray]) -> bytes:
    flat = np.concatenate([gradients[name].reshape(-1).astype(np.float32) for name in SHAPES])
    return bytes(encode(codec, flat))


def given(values: Any) -> bytes:
    return (values.shorts if isinstance(values, Encoded) else values).tobytes()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("kind", KINDS)
def test_tensor_by_tensor_as_a_backward_pass_makes_them(kind: str, codec: Codec) -> None:
    """Each is put while its kernel is still waiting; three steps through the same memory."""
    with device_of(kind) as (device, world):
        out = Outgoing(layout_of(SHAPES), codec, device.backend(), bucket_bytes=BUCKET_BYTES)
        for step in range(3):
            gradients = random_gradients(SHAPES, step)
            for name in reversed(SHAPES):
                out.put(name, late(world, device, gradients[name]))
            staged = out.take()
            assert given(staged.values) == expected(codec, gradients)
            assert staged.beyond is None
        if world is not None:
            assert world.counts["copy pageable"] == 0
            assert world.counts["launch gather"] == 3 * len(out._buckets) == 9


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("kind", KINDS)
def test_all_tensors_at_once_by_one_kernel(kind: str, codec: Codec) -> None:
    with device_of(kind) as (device, world):
        out = Outgoing(layout_of(SHAPES), codec, device.backend(), bucket_bytes=BUCKET_BYTES)
        for step in range(2):
            gradients = random_gradients(SHAPES, step)
            out.put_all({name: late(world, device, gradients[name]) for name in reversed(SHAPES)})
            assert given(out.take().values) == expected(codec, gradients)
            if world is not None:
                assert world.counts["launch gather"] == step + 1


@pytest.mark.parametrize("kind", KINDS)
def test_copies_go_on_while_the_backward_pass_does(kind: str) -> None:
    """The copies of the last layers are given before the first layers' gradients are there."""
    with device_of(kind) as (device, world):
        out = Outgoing(layout_of(SHAPES), Codec.BF16, device.backend(), bucket_bytes=BUCKET_BYTES)
        gradients = random_gradients(SHAPES)
        out.put("e", late(world, device, gradients["e"]))
        out.put("d", late(world, device, gradients["d"]))
        out.put("c", late(world, device, gradients["c"]))
        if world is not None:
            assert world.counts["download"] == 1
            assert world.counts["execute download"] == 0
        out.put("b", late(world, device, gradients["b"]))
        out.put("a", late(world, device, gradients["a"]))
        assert given(out.take().values) == expected(Codec.BF16, gradients)


@pytest.mark.parametrize("kind", EARLY)
def test_gradients_of_several_streams_are_all_waited_for(kind: str) -> None:
    with device_of(kind) as (device, world):
        cuda = device.xp.cuda
        out = Outgoing(layout_of(SHAPES), Codec.FP32, device.backend(), bucket_bytes=1 << 20)
        gradients = random_gradients(SHAPES)
        streams = [cuda.Stream(non_blocking=True) for _ in SHAPES]
        for name, stream in zip(SHAPES, streams, strict=True):
            with stream:
                out.put(name, late(world, device, gradients[name]))
        assert given(out.take().values) == expected(Codec.FP32, gradients)


def test_what_was_put_is_kept_until_it_was_read() -> None:
    """The caller lets go of a gradient at once; its memory is spoiled when nobody holds it."""
    with device_of("cupy") as (device, world):
        out = Outgoing(layout_of(SHAPES), Codec.FP32, device.backend(), bucket_bytes=BUCKET_BYTES)
        gradients = random_gradients(SHAPES)
        for name in SHAPES:
            array = late(world, device, gradients[name])
            out.put(name, array)
            del array
            gc.collect()
        assert given(out.take().values) == expected(Codec.FP32, gradients)
        before = world.used
        gc.collect()
        world.queues.clear()
        assert world.used <= before
        assert not out._arrays


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_floats_strides_and_the_factor(kind: str) -> None:
    """Of a loss that was scaled up: what float16 holds is made float32 and then divided."""
    with device_of(kind) as (device, _):
        out = Outgoing(layout_of(SHAPES), Codec.FP32, device.backend(), bucket_bytes=BUCKET_BYTES)
        out.factor = 2.0**-10
        gradients: dict[str, np.ndarray] = random_gradients(SHAPES)
        gradients |= {"a": gradients["a"].astype(np.float16), "b": gradients["b"].astype(np.float64)}
        on_device = {name: device.from_host(array) for name, array in gradients.items()}
        turned = device.from_host(np.ascontiguousarray(gradients["a"].T)).T
        assert not turned.flags.c_contiguous
        for name in SHAPES:
            out.put(name, turned if name == "a" else on_device[name])
        scaled = {name: array.astype(np.float32) * np.float32(2.0**-10) for name, array in gradients.items()}
        assert given(out.take().values) == expected(Codec.FP32, scaled)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("codec", "value"),
    [(Codec.FP32, np.inf), (Codec.FP16, 65520.0), (Codec.BF16, np.nan), (Codec.BF16, -3.4e38)],
)
def test_the_first_element_that_is_not_finite_is_found_on_the_device(kind: str, codec: Codec, value: float) -> None:
    with device_of(kind) as (device, world):
        out = Outgoing(layout_of(SHAPES), codec, device.backend(), bucket_bytes=BUCKET_BYTES)
        for bad in (True, False):  # and it is forgotten afterwards
            gradients = random_gradients(SHAPES)
            if bad:
                gradients["b"][7] = gradients["b"][2999] = gradients["e"][0] = value
            for name in reversed(SHAPES):
                out.put(name, late(world, device, gradients[name]))
            staged = out.take()
            if bad:
                place, found = staged.beyond
                assert place == 2007
                assert np.array_equal(found, np.float32(value), equal_nan=True)
            else:
                assert staged.beyond is None


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_tensors_are_zeros_and_not_waited_for(kind: str) -> None:
    with device_of(kind) as (device, world):
        out = Outgoing(layout_of(SHAPES), Codec.BF16, device.backend(), {"b", "e"}, bucket_bytes=BUCKET_BYTES)
        gradients = random_gradients(SHAPES)
        for name in ("a", "c", "d"):
            out.put(name, late(world, device, gradients[name]))
        zeros = {name: np.zeros_like(gradients[name]) for name in ("b", "e")}
        assert given(out.take().values) == expected(Codec.BF16, {**gradients, **zeros})
        with pytest.raises(InvalidArgument, match=r"tensor 'b': expected nothing, for it is frozen"):
            out.put("b", gradients["b"])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_wrong_is_named_and_what_was_put_stays(kind: str) -> None:
    with device_of(kind) as (device, world):
        out = Outgoing(layout_of(SHAPES), Codec.FP32, device.backend(), bucket_bytes=BUCKET_BYTES)
        gradients = random_gradients(SHAPES)
        out.put("a", late(world, device, gradients["a"]))
        for name, value, words in (
            ("x", gradients["a"], "tensor 'x': expected one of the model, received an unknown one"),
            ("a", gradients["a"], "tensor 'a': expected once a step, received again"),
            ("b", np.zeros(3, np.float32), r"tensor 'b': expected shape \(3000,\), received shape \(3,\)"),
            ("b", np.zeros(3000, np.int32), "tensor 'b': expected float16, float32 or float64, received int32"),
            ("b", object(), "tensor 'b': expected an array of floats, received object"),
        ):
            with pytest.raises(InvalidArgument, match=words):
                out.put(name, value)
        with pytest.raises(InvalidArgument, match=r"tensor 'b': expected shape \(3000,\), received nothing; tensor"):
            out.take()
        with pytest.raises(InvalidArgument, match="put before"):
            out.put_all(gradients)
        for name in ("b", "c", "d", "e"):
            out.put(name, late(world, device, gradients[name]))
        assert given(out.take().values) == expected(Codec.FP32, gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_discarded_leaves_nothing_behind(kind: str) -> None:
    with device_of(kind) as (device, world):
        out = Outgoing(layout_of(SHAPES), Codec.FP16, device.backend(), bucket_bytes=BUCKET_BYTES)
        wrong = random_gradients(SHAPES, 9)
        wrong["e"][:] = np.nan
        for name in ("e", "d"):
            out.put(name, late(world, device, wrong[name]))
        out.discard()
        assert not out.begun
        gradients = random_gradients(SHAPES)
        for name in SHAPES:
            out.put(name, late(world, device, gradients[name]))
        staged = out.take()
        assert given(staged.values) == expected(Codec.FP16, gradients)
        assert staged.beyond is None


@pytest.mark.parametrize("kind", EARLY)
def test_what_is_discarded_was_read_before_it_is_let_go(kind: str) -> None:
    """Memory that is gone when a kernel reads it loses the device."""
    with device_of(kind) as (device, world):
        out = Outgoing(layout_of(SHAPES), Codec.FP32, device.backend(), bucket_bytes=BUCKET_BYTES)
        out.put("a", late(world, device, random_gradients(SHAPES)["a"]))
        out.discard()
        gc.collect()
        device.xp.cuda.Device().synchronize()


@pytest.mark.parametrize("kind", EARLY)
def test_a_table_of_addresses_is_written_when_the_last_one_was_read(kind: str) -> None:
    with device_of(kind) as (device, _):
        backend = device.backend()
        group = backend.group([slice(0, 3), slice(3, 5)])
        first, flats, kept = backend.zeros(1, np.uint64), [], []
        for step in range(3):
            kept.append([device.from_host(np.full(n, 10 * step + n, np.float32)) for n in (3, 2)])
            flats.append(backend.zeros(5, np.float32))
            group.gather(kept[-1], flats[-1], 1.0, LIMITS[Codec.FP32], first)
        backend.wait()
        assert [device.to_host(flat).tolist() for flat in flats] == [
            [10 * step + 3] * 3 + [10 * step + 2] * 2 for step in range(3)
        ]


def test_ten_thousand_tensors_are_one_kernel_and_their_table_is_copied_once() -> None:
    shapes = {f"t{number}": (number % 7 + 1,) for number in range(10_000)}
    with device_of("cupy") as (device, world):
        out = Outgoing(layout_of(shapes), Codec.BF16, device.backend())
        memory = random_gradients(shapes)
        arrays = {name: device.from_host(array) for name, array in memory.items()}
        for _ in range(2):
            uploads = world.counts["upload"]
            out.put_all(arrays)
            flat = np.concatenate(list(memory.values()))
            assert given(out.take().values) == bytes(encode(Codec.BF16, flat))
        assert world.counts["launch gather"] == 2
        assert world.counts["upload"] == uploads == 2  # addresses and kinds; the same ones again are not sent


def test_the_kernels_source_itself_drives_the_path() -> None:
    """As all of the above, with the source that a GPU compiles made functions by a C compiler."""
    with device_of("cupy", compiled=True) as (device, world):
        for codec in CODECS:
            out = Outgoing(layout_of(SHAPES), codec, device.backend(), bucket_bytes=BUCKET_BYTES)
            gradients = random_gradients(SHAPES)
            gradients["d"][1, 1, 1] = np.inf
            for name in reversed(SHAPES):
                out.put(name, late(world, device, gradients[name]))
            staged = out.take()
            assert given(staged.values) == expected(codec, gradients)
            assert staged.beyond == (2000 + 3000 + 1 + 17, np.float32(np.inf))


class Foreign:
    """An array of another library on the device."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, stream: int | None = None) -> Any:
        assert stream == 0, "its library must have its own stream wait with the current one"
        return self.array


def test_arrays_of_other_libraries_on_the_device_are_taken_where_they_are() -> None:
    with device_of("cupy") as (device, world):
        out = Outgoing(layout_of(SHAPES), Codec.FP32, device.backend(), bucket_bytes=BUCKET_BYTES)
        gradients = random_gradients(SHAPES)
        for name in SHAPES:
            array = late(world, device, gradients[name])
            out.put(name, gradients[name] if name == "c" else Foreign(array))
        assert given(out.take().values) == expected(Codec.FP32, gradients)
