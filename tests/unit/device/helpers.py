"""Devices for tests: plain NumPy, the stand-in for CuPy, and, where PARAMSERVER_GPU is set, a GPU in its place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from paramserver.wire.layout import Layout
from paramserver.wire.spec import ModelSpec, NonFinite, TensorSpec, sgd
from tests.unit.device.standin import World, installed
from worker import device as devices

EARLY = {"cupy": (), "early work": (0,), "early copies": (1,)}
"""Streams of the first backend that do at once what they are given: work is made first."""
KINDS = ("numpy", "gpu") if os.environ.get("PARAMSERVER_GPU") else ("numpy", *EARLY)
SPIN_CYCLES = 2_000_000
SPIN = """
extern "C" __global__ void spin(long long cycles) {
    long long start = clock64();
    while (clock64() - start < cycles) { }
}
"""
"""About a millisecond."""


@contextmanager
def device_of(kind: str, **options: Any) -> Iterator[tuple[devices.Device, World | None]]:
    if kind not in EARLY:
        yield devices.get("numpy" if kind == "numpy" else "cupy"), None
        return
    with installed(early=EARLY[kind], **options) as world:
        yield devices.get("cupy"), world


def layout_of(shapes: dict[str, tuple[int, ...]], non_finite: NonFinite = NonFinite.REJECT) -> Layout:
    tensors = tuple(TensorSpec(name, shape) for name, shape in shapes.items())
    return Layout(ModelSpec("m", tensors, sgd(0.5), 1, block_bytes=4096, non_finite=non_finite))


def random_gradients(shapes: dict[str, tuple[int, ...]], seed: int = 1) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def late(world: World | None, device: devices.Device, values: np.ndarray) -> Any:
    """An array whose kernel was given to the current stream and has not run."""
    cupy = device.xp
    if cupy is np:
        return values.copy()
    if world is None:
        ready, array = cupy.asarray(values), cupy.zeros(values.shape, values.dtype)
        cupy.RawKernel(SPIN, "spin")((1,), (1,), (np.int64(SPIN_CYCLES),))
        array[...] = ready
        return array
    array, kept = cupy.empty(values.shape, values.dtype), values.copy()
    cupy.cuda.get_current_stream().queue.give("backward", lambda: np.copyto(array._a, kept))
    return array
