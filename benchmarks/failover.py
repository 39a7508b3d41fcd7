"""How long workers stall when a data group's leader is killed with kill -9, again and again.

    python -m benchmarks.failover --kills 10 --out benchmarks/results/failover.json

Three servers, two workers that train on digits through the public API, on loopback, fsync on. Each time the leader of
a data group that holds a part of the model is killed, training goes on without it, and it is brought back and catches
up before the next. The stall is that of RULES F1: the longest time between two consecutive completed steps of a worker
around the fault, less the run's median step. With `--links` what servers say to each other goes through the process
by which the laboratory spoils networks, with nothing spoiled: what it costs by itself.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import machine, results
from paramserver.lab import records, status
from paramserver.lab.cluster import Cluster, WorkerOptions
from paramserver.lab.errors import LabError
from paramserver.lab.final import find_model

MODEL = "digits"
STEPS_BETWEEN = 30
"""Completed steps of every worker before a kill, while the server is down, and after it is back."""
TIMEOUT_S = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", default=10, type=int)
    parser.add_argument("--workers", default=2, type=int)
    parser.add_argument("--links", action="store_true", help="through the laboratory's links, all of them clear")
    parser.add_argument("--out", metavar="FILE", help="write the JSON here too")
    options = parser.parse_args()
    kills, median_step_ms, steps_per_s = measure(options.kills, options.workers, links=options.links)
    stalls = [kill["stall_ms"] for kill in kills]
    results.write(
        {
            "benchmark": "failover",
            "command": machine.command("failover"),
            "machine": machine.machine(),
            "versions": machine.versions(),
            "workers": options.workers,
            "replicas": 3,
            "durability": "fsync",
            "links": options.links,
            "median_stall_ms": round(statistics.median(stalls), 1),
            "worst_stall_ms": max(stalls),
            "median_step_ms": round(median_step_ms, 2),
            "steps_per_s": round(steps_per_s, 1),
            "kills": kills,
        },
        options.out,
    )


def measure(kills: int, workers: int, *, links: bool = False) -> tuple[list[dict[str, Any]], float, float]:
    faults: list[tuple[int, int, float, float]] = []
    with Cluster(links=links) as cluster:
        cluster.start_workers(
            WorkerOptions(rank=rank, ranks=workers, steps=1_000_000, model_name=MODEL, device="numpy")
            for rank in range(workers)
        )
        until(cluster, STEPS_BETWEEN)
        for number in range(kills):
            group, node = victim(cluster, number)
            killed_s = cluster.kill(node)
            until(cluster, done(cluster) + STEPS_BETWEEN)
            faults.append((group, node, killed_s, time.monotonic()))
            cluster.start_server(node)
            cluster.wait_for(lambda node=node: caught_up(cluster, node), f"node {node} to catch up", TIMEOUT_S, 0.05)
            until(cluster, done(cluster) + STEPS_BETWEEN)
        some = [records.read(worker.record, rank) for rank, worker in cluster.workers.items()]
    found = [
        {"group": group, "node": node, "stall_ms": round(records.stall_ms(some, killed_s, back_s), 1)}
        for group, node, killed_s, back_s in faults
    ]
    return found, records.median_step_s(some) * 1000, records.steps_per_s(some)


def victim(cluster: Cluster, number: int) -> tuple[int, int]:
    """The groups that hold a part of the model, in turn, and who leads them."""
    model = find_model(cluster.statuses(), MODEL)
    groups = sorted({shard.group for shard in model.shards if shard.blocks})
    group = groups[number % len(groups)]
    return group, cluster.leader_of(group)


def caught_up(cluster: Cluster, node: int) -> bool:
    """Every group of the node is within a few entries of what its leader committed."""
    answers = cluster.statuses()
    own = next((one for one in status.reached(answers) if one.node == node), None)
    if own is None or len(status.leaders(answers)) < len({state.group for state in own.groups}):
        return False
    for state in own.groups:
        leader = status.leader_of(answers, state.group)
        there = leader.group(state.group) if leader is not None else None
        if there is None or state.applied_index + 20 < there.commit_index:
            return False
    return True


def done(cluster: Cluster) -> int:
    return min(records.read(worker.record, rank).last_step + 1 for rank, worker in cluster.workers.items())


def until(cluster: Cluster, step: int) -> None:
    def there() -> bool:
        for worker in cluster.workers.values():
            if not worker.running:
                raise LabError(f"{worker.name} ended with {worker.code}", worker.last_words())
        return done(cluster) >= step

    cluster.wait_for(there, f"step {step}", TIMEOUT_S, 0.02)


if __name__ == "__main__":
    main()
