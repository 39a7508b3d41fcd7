"""The driver of Ray's parameter server, as in Ray's own example: worker actors compute, the server's actor adds.

`--restarts`: actors come back, and calls are tried again, as often as needed (`max_restarts`, `max_task_retries`).
`--checkpoint FILE`: the server's actor saves every so many steps, and one that was reconstructed begins with what it
finds, as Ray's documentation on actor checkpoints shows.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_DEDUP_LOGS"] = "0"

import numpy as np
import ray

from benchmarks.faults.peers.ledger import BLOCKS, CHECKPOINT_EVERY, Ledger


class Server:
    def __init__(self, ranks: int, checkpoint: str | None) -> None:
        self.weights, self.version, self.checkpoint = np.zeros((ranks, BLOCKS)), 0, checkpoint
        if checkpoint is not None and os.path.exists(checkpoint):
            saved = np.load(checkpoint)
            self.weights, self.version = saved["weights"], int(saved["version"])

    def apply(self, *gradients: Any) -> Any:
        self.weights = self.weights + sum(gradients)
        self.version += 1
        if self.checkpoint is not None and self.version % CHECKPOINT_EVERY == 0:
            np.savez(f"{self.checkpoint}.new.npz", weights=self.weights, version=self.version)
            os.replace(f"{self.checkpoint}.new.npz", self.checkpoint)
        return self.weights

    def pid(self) -> int:
        return os.getpid()


class Worker:
    def __init__(self, rank: int, ranks: int) -> None:
        self.gradient = np.zeros((ranks, BLOCKS))
        self.gradient[rank] = 1

    def compute(self, weights: Any) -> Any:
        return self.gradient

    def pid(self) -> int:
        return os.getpid()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--stop", type=Path, required=True)
    parser.add_argument("--restarts", action="store_true")
    parser.add_argument("--checkpoint")
    options = parser.parse_args()
    ray.init(
        address="local",
        num_cpus=options.ranks + 1,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 << 20,
        _temp_dir=options.folder,
        _node_ip_address="127.0.0.1",
    )
    forever = {"max_restarts": -1, "max_task_retries": -1} if options.restarts else {}
    server = ray.remote(Server).options(**forever).remote(options.ranks, options.checkpoint)
    remote = ray.remote(Worker).options(**forever)
    workers = [remote.remote(rank, options.ranks) for rank in range(options.ranks)]
    ledger = Ledger(options.record, options.stop)
    pids = {"server": ray.get(server.pid.remote()), "worker": ray.get(workers[-1].pid.remote())}
    ledger.write("start", step=0, pids=pids)
    weights = np.zeros((options.ranks, BLOCKS))
    for step in ledger.steps():
        try:
            weights = ray.get(server.apply.remote(*[worker.compute.remote(weights) for worker in workers]))
        except Exception as error:
            # Of a call that failed for what it was called with, the cause says more than its wrapping.
            ledger.error(step, getattr(error, "cause", None) or error)
            raise
    ledger.final({rank: weights[rank].tolist() for rank in range(options.ranks)})


if __name__ == "__main__":
    main()
