"""What a step of the bundled networks costs a worker, without servers, and what they learn.

    python -m benchmarks.models --out benchmarks/results/models.json
    python -m benchmarks.models --learn --out benchmarks/results/models_learned.json

On NumPy with one BLAS thread, as `paramserver worker` sets it: the time of loss and gradient, of a batch with its
augmentation (which is made ahead, on a thread of its own), and the bytes of the windows that convolutions are laid out
in. Images are random. `--learn` measures accuracy on the held-out digits in place of times: two ranks of 64 images,
their mean gradient, Adam at the rate that the command takes by itself.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.common import machine, results
from paramserver.lab.simulation.reference import Block
from paramserver.wire.allocator import keep_memory
from paramserver.wire.layout import Layout
from worker.data.augment import USUAL, Augmentation, parse_augmentation
from worker.data.batches import Batches
from worker.data.dataset import Dataset, Images, dataset
from worker.reference.cnn import Cnn
from worker.reference.config import TrainConfig, parse_optimizer
from worker.reference.mixed import Mixed
from worker.reference.network import NETWORKS, Network, build

ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
REPEATS = 30
WARM_UP = 5
SIDES, SIZES = (8, 28), (32, 64)
HIDDEN = (128, 64)
EVERYTHING = parse_augmentation("rotate:10,crop:2,contrast:0.2,brightness:0.2,noise:0.05")
LEARN_STEPS = (100, 200, 400)
LEARN_SEEDS = (1, 2, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learn", action="store_true", help="accuracy on the digits, in place of times")
    parser.add_argument("--out", metavar="FILE", help="write the JSON here too")
    options = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ONE_THREAD.items()):
        # Settled when NumPy is imported: once more from the start.
        os.environ.update(ONE_THREAD)
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.models", *sys.argv[1:]])
    keep_memory()
    found: dict[str, Any] = {
        "benchmark": "models",
        "command": machine.command("models"),
        "machine": machine.machine(),
        "versions": machine.versions(),
    }
    if options.learn:
        found["accuracy"] = [learn(name, seed) for name in NETWORKS for seed in LEARN_SEEDS]
    else:
        found["steps"] = [
            row for name in NETWORKS for side in SIDES for size in SIZES for row in steps(name, side, size)
        ]
        found["batches"] = [row for side in SIDES for size in SIZES for row in batches(side, size)]
    results.write(found, options.out)


def steps(name: str, side: int, size: int) -> list[dict[str, Any]]:
    """In fp32, and mixed for the CNN: NumPy has no fast float16, so that is what it costs without a GPU."""
    network = build(name, (side, side), 10, HIDDEN)
    rows = [_step(network, name, "fp32", side, size)]
    if name == "cnn":
        rows.append(_step(Mixed(network), name, "mixed", side, size))
    if isinstance(network, Cnn):
        rows[0]["windows_mib"] = round(sum(shape[0] * shape[1] for shape in window_shapes(side, size)) * 4 / 2**20, 2)
    return rows


def window_shapes(side: int, size: int) -> list[tuple[int, int]]:
    """Rows and columns of each convolution's windows."""
    network = Cnn((side, side), 10)
    tape = network._convolve(network.initial(1), np.zeros((size, side, side), np.float32))
    return [one.rows.shape for one in tape]


def _step(network: Network, name: str, precision: str, side: int, size: int) -> dict[str, Any]:
    weights = network.initial(1)
    random = np.random.default_rng(1)
    images, labels = random.random((size, side, side), np.float32), random.integers(0, 10, size)
    times = timed(lambda _: network.loss_and_gradient(weights, images, labels))
    parameters = sum(int(np.prod(shape)) for shape in network.shapes().values())
    return {
        "network": name,
        "precision": precision,
        "image": [side, side],
        "batch": size,
        "parameters": parameters,
        **times,
        "images_per_s": round(size / times["median_ms"] * 1000),
    }


def batches(side: int, size: int) -> list[dict[str, Any]]:
    data = some_data(side)
    rows = []
    for augmentation in (Augmentation(), USUAL, EVERYTHING):
        made = Batches(data, seed=1, rank=0, ranks=1, size=size, augmentation=augmentation)
        rows.append({"image": [side, side], "batch": size, "augment": str(augmentation), **timed(made.make)})
    return rows


def some_data(side: int) -> Dataset:
    random = np.random.default_rng(2)
    images = Images(random.integers(0, 256, (8192, side, side), np.uint8), random.integers(0, 10, 8192))
    return dataset("random", images, images, classes=10, pixel_max=255)


def timed(call: Callable[[int], object]) -> dict[str, float]:
    """Milliseconds of call(0), call(1), ...; a median far above the least says that the machine had other work."""
    taken = []
    for number in range(WARM_UP + REPEATS):
        began = time.perf_counter()
        call(number)
        taken.append(time.perf_counter() - began)
    kept = [seconds * 1000 for seconds in taken[WARM_UP:]]
    return {"median_ms": round(statistics.median(kept), 2), "min_ms": round(min(kept), 2)}


def learn(name: str, seed: int) -> dict[str, Any]:
    """Held-out accuracy after so many steps."""
    ranks = 2
    given: dict[str, Any] = {"seed": seed, "ranks": ranks, "network": name, "optimizer": parse_optimizer("adam", name)}
    config = TrainConfig(servers="127.0.0.1:1", **given)
    network, data, layout = config.build(), config.load(), Layout(config.spec())
    sources = [TrainConfig(servers="127.0.0.1:1", rank=rank, **given).batches(data) for rank in range(ranks)]
    images, labels = data.held_out_images(), data.held_out.labels
    weights = layout.flatten(network.initial(seed))
    block = Block(config.optimizer, weights)
    accuracy = {}
    for step in range(LEARN_STEPS[-1]):
        total = np.zeros_like(weights)
        for source in sources:
            batch = source.make(step)
            _, gradient = network.loss_and_gradient(layout.unflatten(weights), batch.images, batch.labels)
            total += layout.flatten(gradient)
        weights = block.update(weights, total / np.float32(ranks))
        if step + 1 in LEARN_STEPS:
            right = network.logits(layout.unflatten(weights), images).argmax(axis=1) == labels
            accuracy[step + 1] = round(float(right.mean()), 4)
    return {"network": name, "seed": seed, "accuracy": accuracy}


if __name__ == "__main__":
    main()
