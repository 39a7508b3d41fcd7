"""Clients on the fake cluster, and waiting without sleeping blindly."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from paramserver.wire.spec import sgd
from tests.unit.worker.fake import FakeCluster, FakeNetwork
from worker.client import Client, connect
from worker.model import Model

BLOCK_BYTES = 4096
SHAPES = {"a": (40, 50), "b": (3000,), "c": (1,)}
"""5001 elements: five blocks of 1024, the last one short, in three groups (1, 2 and 2 blocks)."""
BLOCKS = 5


def client_of(cluster: FakeCluster, **options: Any) -> Client:
    network: Any = functools.partial(FakeNetwork, cluster)
    return connect(list(cluster.addresses.values()), network=network, **{"timeout": 5.0, **options})


def initial() -> dict[str, np.ndarray]:
    return {name: np.arange(np.prod(shape), dtype=np.float32).reshape(shape) for name, shape in SHAPES.items()}


def model_of(client: Client, *, rank: int | None = 0, ranks: int = 1, **options: Any) -> Model:
    given = {"optimizer": sgd(0.5), "initial": initial, "block_bytes": BLOCK_BYTES, **options}
    return client.model("demo", SHAPES, ranks=ranks, rank=rank, **given)


def gradients(step: int, rank: int = 0) -> dict[str, np.ndarray]:
    return {name: np.full(shape, 1 + step + 10 * rank, np.float32) for name, shape in SHAPES.items()}


def until(condition: Callable[[], Any], timeout_s: float = 5.0) -> Any:
    """The first true value of `condition`."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.001)
    return value


def applied_once(cluster: FakeCluster, steps: int) -> bool:
    """Every block was applied exactly once a step, in order."""
    expected = [(block, version) for block in range(BLOCKS) for version in range(1, steps + 1)]
    return sorted(cluster.applied) == expected
