"""The driver of Ray's parameter server, as in Ray's own example: workers compute, the server's actor adds what they
made and steps, and its weights are what the workers are called with next."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_DEDUP_LOGS"] = "0"

import numpy as np
import ray

from benchmarks.pushpull.case import LEARNING_RATE, SEED
from benchmarks.pushpull.pacing import Pace


@ray.remote
class Server:
    def __init__(self, elements: int) -> None:
        self.weights = np.zeros(elements, np.float32)
        self.sum = np.empty(elements, np.float32)

    def apply(self, *gradients: Any) -> Any:
        """Arguments are views of shared memory; what is returned is copied into it."""
        total = gradients[0]
        for gradient in gradients[1:]:
            total = np.add(total, gradient, out=self.sum)
        np.multiply(total, np.float32(LEARNING_RATE / len(gradients)), out=self.sum)
        self.weights -= self.sum
        return self.weights


@ray.remote
class Worker:
    def __init__(self, rank: int, elements: int) -> None:
        draw = np.random.default_rng(SEED + rank)
        self.gradient = draw.standard_normal(elements, dtype=np.float32)

    def compute(self, weights: Any) -> Any:
        if weights is not None and weights.shape != self.gradient.shape:
            raise RuntimeError(f"weights of shape {weights.shape}")
        return self.gradient


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--elements", type=int, required=True)
    parser.add_argument("--store-mb", type=int, required=True)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--gate", type=Path, required=True)
    parser.add_argument("--record", type=Path, required=True)
    options = parser.parse_args()
    ray.init(
        address="local",
        num_cpus=options.workers + 1,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=options.store_mb << 20,
        _temp_dir=options.folder,
        _node_ip_address="127.0.0.1",
    )
    server = Server.remote(options.elements)
    workers = [Worker.remote(rank, options.elements) for rank in range(options.workers)]
    weights = None
    for _ in Pace(options.gate, options.record).steps():
        weights = server.apply.remote(*[worker.compute.remote(weights) for worker in workers])
        ready, _waiting = ray.wait([weights], timeout=300)
        if not ready:
            raise RuntimeError("a step took more than 300 s")


if __name__ == "__main__":
    main()
