"""What the public API costs beside the least that a step can be.

    python -m benchmarks.client_overhead --out docs/benchmarks/client_overhead.json

Two ways to push and pull the same model through the same cluster, in turns of some steps in the same process: the
public one, `model.push_pull(dict of arrays).result()`, which copies the arrays, looks for NaN, makes new arrays for the
weights and hands a future over; and the bare one, the engine's own `begin` and `wait` on the client's event loop, with
a flat gradient that is sent from where it lies into a flat buffer that is there already. Each has a model of its own,
of the same tensors. A round is both, in alternating order; the figure is the median over rounds of public over bare, of
the rounds' median steps. Loopback, three servers, SGD, fsync on, one rank.

Owns the two ways, and nothing of how a step is made.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

import paramserver
from benchmarks.common import machine, results
from benchmarks.common.targets import Target
from paramserver.lab.cluster import Cluster
from paramserver.wire.allocator import keep_memory
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


def median_ms(step: Step, steps: int) -> float:
    took = []
    for _ in range(steps):
        began = time.perf_counter()
        step()
        took.append(time.perf_counter() - began)
    return statistics.median(took) * 1e3


def measure(model_mb: int, rounds: int, steps: int, warm_up: int) -> list[dict[str, float]]:
    keep_memory()
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
                median_ms(ways[name], warm_up)
            found = []
            for at in range(rounds):
                order = list(ways) if at % 2 == 0 else list(reversed(ways))
                found.append({name: round(median_ms(ways[name], steps), 3) for name in order})
                print(found[-1], file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-mb", default=16, type=int)
    parser.add_argument("--rounds", default=12, type=int)
    parser.add_argument("--steps", default=12, type=int, help="a way and round")
    parser.add_argument("--warm-up", default=10, type=int, help="steps of each way that are not counted")
    parser.add_argument("--out", metavar="FILE", help="write the JSON here too")
    options = parser.parse_args()
    found = measure(options.model_mb, options.rounds, options.steps, options.warm_up)
    ratios = [one["public"] / one["bare"] for one in found]
    value = round(statistics.median(ratios), 3)
    results.write(
        {
            "benchmark": "client_overhead",
            "command": machine.command("client_overhead"),
            "machine": machine.machine(),
            "versions": machine.versions(),
            "model_mb": options.model_mb,
            "tensors": TENSORS,
            "replicas": 3,
            "durability": "fsync",
            "steps_a_round": options.steps,
            "public_ms": round(statistics.median(one["public"] for one in found), 3),
            "bare_ms": round(statistics.median(one["bare"] for one in found), 3),
            "ratio": value,
            "ratio_least": round(min(ratios), 3),
            "ratio_most": round(max(ratios), 3),
            "rounds": found,
            "figure": TARGET.judged(value),
        },
        options.out,
    )


if __name__ == "__main__":
    main()
