"""What the public API costs beside the least that a step can be.

    python -m benchmarks.client_overhead --out docs/benchmarks/client_overhead.json

Two ways to push and pull the same model through the same cluster, in turns, step by step, in the same process: the
public one, `model.push_pull(dict of arrays).result()`, which copies the arrays, looks for NaN, makes new arrays for the
weights and hands a future over; and the bare one, the engine's own `begin` and `wait` on the client's event loop, with
a flat gradient that is sent from where it lies into a flat buffer that is there already. Each has a model of its own,
of the same tensors. A pair is a step of each, one behind the other, in alternating order; the figure is the median over
pairs of public over bare. CPU time is that of the client's process. Loopback, three servers, SGD, fsync on, one rank.

Owns the two ways, and nothing of how a step is made.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

import paramserver
from benchmarks.common import machine, results
from benchmarks.common.targets import Target
from paramserver.lab.cluster import Cluster
from paramserver.wire.frames import PushKind
from worker.retry import Budget
from worker.tensors import Tensors

TARGET = Target("client_overhead", "public API over the bare path, 16 MB", 1.15, None, less=True)
TENSORS = 32
TIMEOUT_S = 60.0
Step = Callable[[], None]


def public(model: paramserver.Model, gradients: dict[str, Any]) -> Step:
    def step() -> None:
        model.push_pull(gradients).result()

    return step


def bare(model: paramserver.Model, gradients: dict[str, Any]) -> Step:
    engine, loop = model._engine, model._client._loop
    flat = engine.layout.flatten(gradients)
    target = Tensors(engine.layout)

    async def work() -> None:
        engine.begin(engine.step, PushKind.GRADIENT, flat, target)
        await engine.wait(Budget(TIMEOUT_S, "a step"))

    def step() -> None:
        loop.submit(work()).result()

    return step


class Taken(NamedTuple):
    """Of one step: wall time, and CPU time of this process, all threads."""

    ms: float
    cpu_ms: float


def timed(step: Step) -> Taken:
    began, cpu = time.perf_counter(), time.process_time()
    step()
    return Taken((time.perf_counter() - began) * 1e3, (time.process_time() - cpu) * 1e3)


def measure(model_mb: int, pairs: int, warm_up: int) -> dict[str, list[Taken]]:
    elements = (model_mb << 20) // 4 // TENSORS
    shapes = {f"layer{at}": (elements,) for at in range(TENSORS)}
    draw = np.random.default_rng(1)
    gradients = {name: draw.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    zeros = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    ways: dict[str, Step] = {}
    with Cluster() as cluster:
        cluster.start()
        with paramserver.connect(cluster.endpoints, timeout=TIMEOUT_S) as client:
            for name, way in (("public", public), ("bare", bare)):
                model = client.model(name, shapes, optimizer=paramserver.sgd(1e-3), rank=0, initial=zeros)
                ways[name] = way(model, gradients)
            found: dict[str, list[Taken]] = {name: [] for name in ways}
            for at in range(warm_up + pairs):
                for name in list(ways) if at % 2 == 0 else list(reversed(ways)):
                    taken = timed(ways[name])
                    if at >= warm_up:
                        found[name].append(taken)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-mb", default=16, type=int)
    parser.add_argument("--pairs", default=120, type=int, help="steps of each way")
    parser.add_argument("--warm-up", default=10, type=int, help="steps of each way before, that are not counted")
    parser.add_argument("--out", metavar="FILE", help="write the JSON here too")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    found = measure(options.model_mb, options.pairs, options.warm_up)
    ratios = sorted(mine.ms / theirs.ms for mine, theirs in zip(found["public"], found["bare"], strict=True))
    value = round(statistics.median(ratios), 3)
    medians = {
        f"{name}_{field}": round(statistics.median(getattr(one, field) for one in taken), 3)
        for name, taken in found.items()
        for field in ("ms", "cpu_ms")
    }
    results.write(
        {
            "benchmark": "client_overhead",
            "command": machine.command("client_overhead"),
            "machine": machine.machine(),
            "versions": machine.versions(),
            "load_before": round(load, 2),
            "model_mb": options.model_mb,
            "tensors": TENSORS,
            "replicas": 3,
            "durability": "fsync",
            "pairs": len(ratios),
            **medians,
            "ratio": value,
            "ratio_quartiles": [round(ratios[len(ratios) * part // 4], 3) for part in (1, 3)],
            "figure": TARGET.judged(value),
        },
        options.out,
    )


if __name__ == "__main__":
    main()
