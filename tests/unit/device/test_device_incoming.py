"""Weights from host memory to a device: decoded there, in order with what the caller's kernels read."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from paramserver.wire.codecs import Codec, Encoded, decode, encode
from tests.unit.device.helpers import EARLY, KINDS, device_of, layout_of, random_gradients
from worker.device import incoming
from worker.device.incoming import Incoming

SHAPES = {"a": (40, 50), "b": (3001,), "c": (1,)}


def fill(landing: Any, codec: Codec, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As blocks that came: what decodes to the result."""
    flat = np.concatenate([weights[name].reshape(-1) for name in SHAPES])
    payload = bytes(encode(codec, flat))
    if isinstance(landing.flat, Encoded):
        landing.flat.shorts[:] = np.frombuffer(payload, np.uint16)
    else:
        landing.flat[:] = flat
    return layout_of(SHAPES).unflatten(decode(codec, payload, flat.size))


@pytest.mark.parametrize("codec", list(Codec))
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_there_for_the_callers_next_kernel(
    kind: str, codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incoming, "PIECE_ELEMENTS", 1023)
    with device_of(kind) as (device, world):
        to = Incoming(layout_of(SHAPES), codec, device.backend())
        for step in range(2):
            to.idle()
            expected = fill(to.landing, codec, random_gradients(SHAPES, step))
            weights = to.load()
            for name, array in weights.items():
                assert device.to_host(array + 0).tobytes() == (expected[name] + 0).tobytes()
        if world is not None:
            assert world.counts["copy pageable"] == 0


@pytest.mark.parametrize("kind", EARLY)
def test_kernels_given_before_a_load_read_the_old_weights(kind: str) -> None:
    with device_of(kind) as (device, _):
        to = Incoming(layout_of(SHAPES), Codec.BF16, device.backend())
        old = fill(to.landing, Codec.BF16, random_gradients(SHAPES, 1))
        to.load()
        read: dict[str, bytes] = {}
        device.xp.cuda.get_current_stream().queue.give(
            "evaluation", lambda: read.update((name, array._a.tobytes()) for name, array in to.weights.items())
        )
        to.idle()
        fill(to.landing, Codec.BF16, random_gradients(SHAPES, 2))
        to.load()
        to._backend.wait()
        assert read == {name: array.tobytes() for name, array in old.items()}


@pytest.mark.parametrize("kind", EARLY)
def test_host_memory_is_filled_again_only_when_its_copy_is_over(kind: str) -> None:
    with device_of(kind) as (device, world):
        to = Incoming(layout_of(SHAPES), Codec.FP16, device.backend())
        expected = fill(to.landing, Codec.FP16, random_gradients(SHAPES))
        to.load()
        assert world.counts["execute upload"] == 0
        to.idle()
        fill(to.landing, Codec.FP16, random_gradients(SHAPES, 2))
        for name, array in to.weights.items():
            assert device.to_host(array).tobytes() == expected[name].tobytes()


def test_a_landing_has_the_digest_of_what_it_decodes_to() -> None:
    with device_of("cupy") as (device, _):
        for codec in Codec:
            to = Incoming(layout_of(SHAPES), codec, device.backend())
            expected = fill(to.landing, codec, random_gradients(SHAPES))
            plain = Incoming(layout_of(SHAPES), Codec.FP32, device.backend())
            fill(plain.landing, Codec.FP32, expected)
            assert to.landing.digest() == plain.landing.digest()


@pytest.mark.parametrize("kind", EARLY)
def test_page_locked_memory_is_let_go_when_its_copies_are_over(kind: str) -> None:
    """CuPy's pool would hand it out again at once."""
    with device_of(kind) as (device, _):
        backend = device.backend()
        into = backend.zeros(100, np.float32)
        host = backend.pinned(100, np.float32)
        host[:] = 7
        backend.upload(host, into, 0, 100)
        del host
        gc.collect()
        backend.wait()
        assert device.to_host(into).tolist() == [7.0] * 100
