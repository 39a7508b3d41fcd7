"""How many MB/s of weights go through a replicated cluster: every step pushes a gradient and pulls the new weights.

    python -m benchmarks.push_pull --model-mb 1,16,64 --workers 1,2 --out benchmarks/results/push_pull.json

Three replicas of everything, fsync on, worker processes that use the public API alone. MB/s by RULES F2: bytes pushed
and pulled, counted as fp32 model bytes, over wall time, summed over workers. A model of N MB has N * 2**20 bytes; MB/s
and GB are powers of ten. CPU seconds are those of all server and worker processes.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import machine, profile, results
from paramserver.lab import records
from paramserver.lab.cluster import Cluster
from paramserver.lab.processes import Child
from paramserver.lab.usage import cpu_s, resident_bytes

ROOT = Path(__file__).resolve().parents[1]
WARM_UP_STEPS_MIN = 5
WARM_UP_MB = 640
"""Pushed before the clock starts: the first segments of the log are made and zeroed, later ones are recycled."""
START_TIMEOUT_S = 120.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-mb", default="1,16,64", type=numbers, metavar="MB,...")
    parser.add_argument("--workers", default="1,2", type=numbers, metavar="N,...")
    parser.add_argument("--replicas", default=3, type=int, choices=(1, 3), help="of each group (that many servers)")
    parser.add_argument("--seconds", default=10.0, type=float, help="measured, a row")
    parser.add_argument("--steps", default=0, type=int, help="measured steps a row instead of seconds")
    parser.add_argument("--profile", metavar="DIR", help="CPU seconds by thread; stacks by py-spy go to DIR")
    parser.add_argument("--out", metavar="FILE", help="write the JSON here too")
    options = parser.parse_args()
    rows = []
    for model_mb in options.model_mb:
        for workers in options.workers:
            rows.append(measure(model_mb, workers, options))
            print(f"{rows[-1]}", file=sys.stderr, flush=True)
    results.write(
        {
            "benchmark": "push_pull",
            "command": machine.command("push_pull"),
            "machine": machine.machine(),
            "versions": machine.versions(),
            "rows": rows,
        },
        options.out,
    )


def measure(model_mb: int, workers: int, options: argparse.Namespace) -> dict[str, Any]:
    with Cluster(options.replicas) as cluster:
        model_bytes = model_mb << 20
        load = [start_load(cluster, rank, workers, model_bytes) for rank in range(workers)]
        files = [cluster.folder / f"load-{rank}.record" for rank in range(workers)]
        wait_steps(cluster, load, files, max(WARM_UP_STEPS_MIN, WARM_UP_MB // model_mb), START_TIMEOUT_S)
        pids = [child.pid for child in (*load, *cluster.servers.values())]
        named = {child.name: child.pid for child in (*load, *cluster.servers.values())}
        threads = profile.Threads(named) if options.profile else None
        first = steps(files)
        begin_s, begin_cpu_s = time.monotonic(), cpu_s(pids)
        if options.steps:
            wait_steps(cluster, load, files, max(first) + options.steps, options.steps * 10.0)
        else:
            time.sleep(options.seconds)  # the measured time itself
        for child in load:
            if not child.running:
                raise SystemExit(f"{child.name} ended with {child.code}:\n{child.last_words()}")
        last, end_cpu_s = steps(files), cpu_s(pids)
        moved_gb = sum(after - before for before, after in zip(first, last, strict=True)) * 2 * model_bytes / 1e9
        # Whole steps over the time they took: the window itself begins and ends in the middle of one.
        windows = [measured(file, rank, begin_s) for rank, file in enumerate(files)]
        rate = sum(2 * model_bytes * len(gaps) / sum(gaps) for gaps in windows if gaps) / 1e6
        lengths = [gap * 1000 for gaps in windows for gap in gaps]
        memory = max(resident_bytes(server.pid) for server in cluster.servers.values())
        row: dict[str, Any] = {
            "system": "paramserver",
            "model_mb": model_mb,
            "workers": workers,
            "replicas": options.replicas,
            "codec": "fp32",
            "durability": "fsync",
            "mb_per_s": round(rate, 1),
            "step_ms": {
                "p50": results.percentile(lengths, 0.5),
                "p99": results.percentile(lengths, 0.99),
            },
            "cpu_s_per_gb": round((end_cpu_s - begin_cpu_s) / moved_gb, 3) if moved_gb else None,
            "steps": min(last) - min(first),
            "server_memory_mb_max": round(memory / 1e6),
        }
        if threads is not None:
            row["cpu_s_per_gb_by_thread"] = threads.since(moved_gb)
            folder = Path(options.profile) / f"{model_mb}mb-{workers}w"
            row["frames"] = profile.record(named, max(1, round(options.seconds)), folder)
        return row


def measured(file: Path, rank: int, begin_s: float) -> list[float]:
    """Lengths in seconds of the steps that began after `begin_s`."""
    return [end - start for start, end in records.gaps(records.read(file, rank)) if start >= begin_s]


def start_load(cluster: Cluster, rank: int, ranks: int, model_bytes: int) -> Child:
    line = [sys.executable, "-m", "benchmarks.common.load", "--servers", cluster.endpoints]
    line += ["--rank", str(rank), "--ranks", str(ranks), "--model-bytes", str(model_bytes)]
    line += ["--record", str(cluster.folder / f"load-{rank}.record")]
    return cluster.start_child(f"load {rank}", line, {"PYTHONPATH": str(ROOT)})


def steps(files: list[Path]) -> list[int]:
    return [records.read(file, rank).last_step + 1 for rank, file in enumerate(files)]


def wait_steps(cluster: Cluster, load: list[Child], files: list[Path], wanted: int, timeout_s: float) -> None:
    def there() -> bool:
        for child in load:
            if not child.running:
                raise SystemExit(f"{child.name} ended with {child.code}:\n{child.last_words()}")
        return min(steps(files)) >= wanted

    cluster.wait_for(there, f"step {wanted}", timeout_s, 0.05)


def numbers(text: str) -> list[int]:
    return [int(one) for one in text.split(",")]


if __name__ == "__main__":
    main()
