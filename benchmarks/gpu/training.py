"""Training of the CNN through servers on this machine: images a second, and how much of communication shows.

A step is measured three ways with the same batch: its computation alone, its communication alone (a gradient that is
ready goes out, through the servers, and weights come back), and whole. What of communication is not hidden is the time
of the whole beyond computation, as a share of communication.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeAlias

import numpy as np

from paramserver.lab.cluster import Cluster
from paramserver.wire.spec import adam
from worker import device as devices
from worker.client import Client, connect
from worker.device.link import Link
from worker.reference.cnn import Cnn

Servers: TypeAlias = Callable[[], AbstractContextManager[Client]]
SIDE, CLASSES = 28, 10
BATCHES = (64, 1024)
QUICK_BATCHES = (8,)
CODECS = ("fp32", "bf16")
STEPS, WARM_UP = 60, 10
TIMEOUT_S = 60.0


@contextmanager
def servers() -> Iterator[Client]:
    """Three, on loopback, whose disks are synced."""
    with Cluster() as cluster:
        cluster.start()
        with connect(cluster.endpoints, timeout=TIMEOUT_S) as client:
            yield client


def rows(device: devices.Device, given: Servers, *, quick: bool) -> list[dict[str, Any]]:
    with given() as client:
        return [
            _row(device, client, batch, codec, 2 if quick else STEPS)
            for batch in (QUICK_BATCHES if quick else BATCHES)
            for codec in CODECS
        ]


def _row(device: devices.Device, client: Client, batch: int, codec: str, steps: int) -> dict[str, Any]:
    network = Cnn((SIDE, SIDE), CLASSES, device.xp)
    draw = np.random.default_rng(1)
    images = device.from_host(draw.standard_normal((batch, SIDE, SIDE), np.float32))
    labels = device.from_host(draw.integers(0, CLASSES, batch))
    with client.model(
        f"cnn-{codec}-{batch}",
        network.shapes(),
        optimizer=adam(1e-4),
        rank=0,
        initial=network.initial(1),
        codec=codec,
        weights_codec=codec,
    ) as model:
        link = Link(model, device)
        link.pull()

        def compute() -> None:
            loss, _ = network.loss_and_gradient(link.weights, images, labels)
            float(loss)
            device.wait()

        _, gradient = network.loss_and_gradient(link.weights, images, labels)

        def communicate() -> None:
            link.push_pull(gradient).result()
            link.load()
            device.wait()

        def whole() -> None:
            loss, _ = network.loss_and_gradient(link.weights, images, labels, into=link)
            float(loss)
            link.push_pull().result()
            link.load()
            device.wait()

        compute_s, communication_s, step_s = (_median(one, steps) for one in (compute, communicate, whole))
        return {
            "batch": batch,
            "codec": codec,
            "parameters": model.spec.parameters,
            "steps": steps,
            "images_per_s": batch / step_s,
            "step_ms": step_s * 1e3,
            "compute_ms": compute_s * 1e3,
            "communication_ms": communication_s * 1e3,
            "share_not_hidden": max(0.0, step_s - compute_s) / communication_s,
        }


def _median(call: Callable[[], None], steps: int) -> float:
    found = []
    for number in range(steps + min(WARM_UP, steps)):
        began = time.perf_counter()
        call()
        if number >= min(WARM_UP, steps):
            found.append(time.perf_counter() - began)
    return statistics.median(found)
