"""Devices for tests: plain NumPy, and the stand-in for CuPy."""

from __future__ import annotations

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
KINDS = ("numpy", *EARLY)


@contextmanager
def device_of(kind: str, **options: Any) -> Iterator[tuple[devices.Device, World | None]]:
    if kind == "numpy":
        yield devices.get("numpy"), None
        return
    with installed(early=EARLY[kind], **options) as world:
        yield devices.get("cupy"), world


def layout_of(shapes: dict[str, tuple[int, ...]], non_finite: NonFinite = NonFinite.REJECT) -> Layout:
    tensors = tuple(TensorSpec(name, shape) for name, shape in shapes.items())
    return Layout(ModelSpec("m", tensors, sgd(0.5), 1, block_bytes=4096, non_finite=non_finite))


def random_gradients(shapes: dict[str, tuple[int, ...]], seed: int = 1) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def late(world: World | None, device: devices.Device, values: np.ndarray, stream: Any = None) -> Any:
    """An array whose kernel was given to a stream (the current one) and has not run."""
    if world is None:
        return values.copy()
    cupy = device.xp
    array = cupy.empty(values.shape, values.dtype)
    stream = stream or cupy.cuda.get_current_stream()
    kept = values.copy()
    stream.queue.give("backward", lambda: np.copyto(array._a, kept))
    return array
