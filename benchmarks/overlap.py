"""How much of a step's communication hides behind the backward pass when gradients are handed over one by one.

    python -m benchmarks.overlap --out benchmarks/results/overlap.json

In place of a GPU the backward pass *waits*: a sleep per layer, the last layer first, with the gradient of the layer
there at its end; the processor is free meanwhile, as it is while a GPU computes. It is made to last `--times` as long
as the communication of a step takes alone (a push_pull of everything, measured first). Three ways to make a step, in
turns, round by round:

    compute    the waits alone
    overlap    `model.begin()`, after each wait `put()` of the layer's gradient, then `finish()`
    behind     the waits, then `push_pull()` of everything

The figure is the median over rounds of overlap over compute: time until the weights after the step are there, applied
and on the disks of a majority. Loopback, three servers, SGD, fsync on, one rank, everything on the same cores.

Owns the ways, and nothing of how a step is made.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

import paramserver
from benchmarks.common import machine, results
from benchmarks.common.targets import Target
from paramserver.lab.cluster import Cluster

TARGET = Target("overlap", "a step handed over layer by layer, over compute alone", 1.15, None, less=True)
TIMEOUT_S = 60.0
Step = Callable[[], Any]


class Ways:
    """Of making a step of one model. `wait_s`: of each layer."""

    def __init__(self, model: paramserver.Model, gradients: dict[str, Any]) -> None:
        self._model = model
        self._gradients = gradients
        self._out = model.pull()
        self.wait_s = 0.0

    def communication(self) -> None:
        self._model.push_pull(self._gradients, out=self._out).result()

    def backward(self) -> Iterator[str]:
        """The layers, each when its gradient is there."""
        for name in self._gradients:
            time.sleep(self.wait_s)
            yield name

    def compute(self) -> None:
        for _ in self.backward():
            pass

    def overlap(self) -> None:
        step = self._model.begin(out=self._out)
        for name in self.backward():
            step.put(name, self._gradients[name])
        step.finish().result()

    def behind(self) -> None:
        self.compute()
        self.communication()


def timed(step: Step) -> float:
    """ms"""
    began = time.perf_counter()
    step()
    return (time.perf_counter() - began) * 1e3


def measure(
    model_mb: int, layers: int, rounds: int, warm_up: int, times: float
) -> tuple[float, dict[str, list[float]]]:
    """(communication alone, way -> ms of each round)"""
    shapes = {f"layer{at}": ((model_mb << 20) // 4 // layers,) for at in reversed(range(layers))}
    draw = np.random.default_rng(1)
    gradients = {name: draw.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    zeros = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    with Cluster() as cluster:
        cluster.start()
        with paramserver.connect(cluster.endpoints, timeout=TIMEOUT_S) as client:
            model = client.model("overlap", shapes, optimizer=paramserver.sgd(1e-3), rank=0, initial=zeros)
            ways = Ways(model, gradients)
            for _ in range(warm_up):
                ways.communication()
            alone = statistics.median(timed(ways.communication) for _ in range(rounds))
            ways.wait_s = times * alone / 1e3 / layers
            each: dict[str, Step] = {"compute": ways.compute, "overlap": ways.overlap, "behind": ways.behind}
            found: dict[str, list[float]] = {name: [] for name in each}
            for _ in range(rounds):
                for name, way in each.items():
                    found[name].append(timed(way))
    return alone, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-mb", default=16, type=int)
    parser.add_argument("--layers", default=32, type=int, help="tensors of equal size")
    parser.add_argument("--times", default=1.5, type=float, help="the backward pass, in times of the communication")
    parser.add_argument("--rounds", default=40, type=int)
    parser.add_argument("--warm-up", default=10, type=int, help="steps before that are not counted")
    parser.add_argument("--out", metavar="FILE", help="write the JSON here too")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    alone, found = measure(options.model_mb, options.layers, options.rounds, options.warm_up, options.times)
    ratios = {
        name: sorted(mine / compute for mine, compute in zip(found[name], found["compute"], strict=True))
        for name in ("overlap", "behind")
    }
    value = round(statistics.median(ratios["overlap"]), 3)
    medians = {name: statistics.median(taken) for name, taken in found.items()}
    results.write(
        {
            "benchmark": "overlap",
            "command": machine.command("overlap"),
            "machine": machine.machine(),
            "versions": machine.versions(),
            "load_before": round(load, 2),
            "backward": f"a sleep per layer in place of a GPU, {options.times:g} times the communication",
            "model_mb": options.model_mb,
            "layers": options.layers,
            "replicas": 3,
            "durability": "fsync",
            "rounds": options.rounds,
            "communication_ms": round(alone, 3),
            **{f"{name}_ms": round(ms, 3) for name, ms in medians.items()},
            "hidden": round(1 - (medians["overlap"] - medians["compute"]) / alone, 3),
            "ratio": value,
            "ratio_quartiles": [round(ratios["overlap"][options.rounds * part // 4], 3) for part in (1, 3)],
            "ratio_behind": round(statistics.median(ratios["behind"]), 3),
            "figure": TARGET.judged(value),
        },
        options.out,
    )


if __name__ == "__main__":
    main()
