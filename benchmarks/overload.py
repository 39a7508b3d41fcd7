"""What a cluster does under ten times the load that it takes, or under workers that push as fast as they can.

    python -m benchmarks.overload --seconds 120 --out benchmarks/results/overload.json
    python -m benchmarks.overload --workers 8 --seconds 120 --out benchmarks/results/overload_workers.json
    python -m benchmarks.overload --quick

Three servers, fsync on, clients that use the public API alone. Without `--workers`: for a sixth of the time as many
pushers and pullers as the cluster takes (`--streams` and `--pulls` of each node are bounds of the servers), then ten
times as many. Goodput counts steps that were acknowledged and pulls that were complete, both as fp32 model bytes; its
peak is the first part's. Clients run at a lower priority: they stand for other machines. Exit code 1 if a check failed;
`--quick` checks only what no clock decides.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import machine, results
from benchmarks.overloads.watch import Watch, slope
from paramserver.lab import records
from paramserver.lab.cluster import Cluster, ServerOptions
from paramserver.lab.processes import Child

ROOT = Path(__file__).resolve().parents[1]
MIB = 1 << 20
TIMES = 10
READY_S = 90.0
SAMPLE_S = 0.5
GOODPUT_MIN = 0.8
FLAT_MB_PER_MINUTE = 10.0
FLAT_SHARE_PER_MINUTE = 0.05
FLAT_DESCRIPTORS_PER_MINUTE = 2.0
DESCRIPTORS_MORE_MAX = 64
LAG_P99_MS_MAX = 10.0
WORKERS_MODEL_MB = 16
WARM_UP_STEPS = 5
QUICK_FLAGS = ("--heartbeat-ms", "200", "--election-timeout-ms", "3000")
"""Where tests share the machine, a process may not run for as long as an election timeout; that says nothing about
heartbeats."""


def main(arguments: list[str] | None = None) -> int:
    options = parsed(arguments)
    result = run(options)
    results.write(result, options.out)
    return 0 if all(result["checks"].values()) else 1


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0, help="measured, all parts together")
    parser.add_argument("--workers", type=int, default=0, help="ranks of one model that push as fast as they can")
    parser.add_argument("--model-mb", type=float, default=0, help="of each pusher; of the model with --workers")
    parser.add_argument("--processes", type=int, default=2, help="of clients")
    parser.add_argument("--load", type=int, default=4, help="pushers, and pullers, that the cluster takes")
    parser.add_argument("--streams", type=int, default=8, help="--streams-max of each server")
    parser.add_argument("--pulls", type=int, default=4, help="--pulls-max of each server")
    parser.add_argument("--window-mb", type=int, default=16, help="each of the windows in bytes of the servers")
    parser.add_argument("--hot", action="store_true", help="all pulls are of one model")
    parser.add_argument("--quick", action="store_true", help="a slice of 20 s that checks what no clock decides")
    parser.add_argument("--out", metavar="FILE", help="write the JSON here too")
    options = parser.parse_args(arguments)
    if options.quick:
        options.seconds = min(options.seconds, 6.0)
        options.load, options.streams, options.pulls = 2, 4, 2
    options.model_mb = options.model_mb or (WORKERS_MODEL_MB if options.workers else 1)
    return options


def run(options: argparse.Namespace) -> dict[str, Any]:
    measured = workers(options) if options.workers else overload(options)
    return {
        "benchmark": "overload",
        "command": machine.command("overload"),
        "machine": machine.machine(),
        "versions": machine.versions(),
        **measured,
    }


# --- ten times the load


def overload(options: argparse.Namespace) -> dict[str, Any]:
    flags = ["--streams-max", str(options.streams), "--pulls-max", str(options.pulls)]
    for window in ("window", "pulls", "replies", "uncommitted"):
        flags += [f"--{window}-bytes" + ("" if window == "window" else "-max"), str(options.window_mb * MIB)]
    if options.quick:
        flags += QUICK_FLAGS
    with Cluster(3, options=ServerOptions(flags=tuple(flags))) as cluster:
        orders, clients = start_clients(cluster, options)
        watch = Watch(cluster)
        each = max(1, options.load // options.processes)
        tell(orders, each)
        peak_from = settle(watch, clients, options.seconds / 24)
        flood_from = sample_for(watch, clients, options.seconds / 6)
        tell(orders, TIMES * each)
        end = sample_for(watch, clients, options.seconds * 5 / 6)
        peak, good = rate(clients, peak_from, flood_from), rate(clients, flood_from, end)
        report = watch.report(peak_from)
        counts = Counter({name: count for name, count in counted(clients).items() if not name[-1].isdigit()})
        counters = {str(node.node): dict(node.counters) for node in cluster.statuses() if hasattr(node, "counters")}
    peak_mb, good_mb = round(peak / 1e6, 1), round(good / 1e6, 1)
    ratio = round(good / peak, 3) if peak else None
    checks = always(report, counts)
    checks["something_was_refused"] = counts["refused_RESOURCE_EXHAUSTED_BUSY"] > 0
    if not options.quick:
        checks["goodput"] = ratio is not None and ratio >= GOODPUT_MIN
        checks |= timed(report)
    return {
        "mode": "hot" if options.hot else "overload",
        "seconds": options.seconds,
        "clients": {"peak": 2 * each * options.processes, "overload": 2 * TIMES * each * options.processes},
        "peak_mb_per_s": peak_mb,
        "goodput_mb_per_s": good_mb,
        "goodput_ratio": ratio,
        "attempts": dict(sorted(counts.items())),
        **report,
        "checks": checks,
        "counters": counters,
    }


def start_clients(cluster: Cluster, options: argparse.Namespace) -> tuple[Path, list[Child]]:
    orders = cluster.folder / "orders"
    tell(orders, 0)
    each = TIMES * max(1, options.load // options.processes)
    clients = []
    for number in range(options.processes):
        line = [sys.executable, "-m", "benchmarks.overloads.flood", "--servers", cluster.endpoints]
        line += ["--orders", str(orders), "--number", str(number)]
        line += ["--pushers", str(each), "--pullers", str(each)]
        line += ["--model-bytes", str(int(options.model_mb * MIB)), "--block-bytes", str(MIB // 4)]
        line += ["--hot"] * options.hot
        clients.append(cluster.start_child(f"flood {number}", line, {"PYTHONPATH": str(ROOT)}))
    for client in clients:
        client.await_line("ready", READY_S)
    return orders, clients


def tell(orders: Path, count: int) -> None:
    new = orders.with_suffix(".new")
    new.write_text(str(count))
    new.rename(orders)


def settle(watch: Watch, clients: list[Child], seconds: float) -> float:
    sample_for(watch, clients, seconds)
    watch.samples.clear()
    return sample_for(watch, clients, 0.0)


def sample_for(watch: Watch, processes: list[Child], seconds: float) -> float:
    """Returns the time of the last sample."""
    end = time.monotonic() + seconds
    while True:
        taken = watch.sample()
        for child in (*processes, *watch.cluster.servers.values()):
            if not child.running:
                raise SystemExit(f"{child.name} ended with {child.code}:\n{child.last_words()}")
        if time.monotonic() >= end:
            return taken.t
        time.sleep(min(SAMPLE_S, max(0.0, end - time.monotonic())))


def told(client: Child) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in client.output().splitlines(keepends=True) if line[0] == "{" and line[-1] == "\n"
    ]


def rate(clients: list[Child], begin: float, end: float) -> float:
    """Bytes a second, of what the clients say they moved between the two times."""
    total = 0.0
    for client in clients:
        points = [(one["t"], one.get("bytes", 0)) for one in told(client) if begin <= one["t"] <= end]
        total += slope(points)
    return total


def counted(clients: list[Child]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for client in clients:
        last = (told(client) or [{}])[-1]
        counts.update({name: count for name, count in last.items() if name not in ("t", "active")})
    return counts


# --- workers that push as fast as they can


def workers(options: argparse.Namespace) -> dict[str, Any]:
    model_bytes = int(options.model_mb * MIB)
    with Cluster(3) as cluster:
        files = [cluster.folder / f"load-{rank}.record" for rank in range(options.workers)]
        load = [start_rank(cluster, rank, options.workers, model_bytes, file) for rank, file in enumerate(files)]
        cluster.wait_for(lambda: min(steps(files)) >= WARM_UP_STEPS, "the first steps", READY_S)
        watch = Watch(cluster)
        first, begin = steps(files), settle(watch, load, 0.0)
        end = sample_for(watch, load, options.seconds)
        done = sum(steps(files)) - sum(first)
        report = watch.report(begin)
    checks = always(report, Counter())
    checks["steps_were_made"] = done > 0
    if not options.quick:
        checks |= timed(report)
    return {
        "mode": "workers",
        "seconds": options.seconds,
        "workers": options.workers,
        "model_mb": options.model_mb,
        "mb_per_s": round(done * 2 * model_bytes / (end - begin) / 1e6, 1),
        **report,
        "checks": checks,
    }


def start_rank(cluster: Cluster, rank: int, ranks: int, model_bytes: int, file: Path) -> Child:
    line = [sys.executable, "-m", "benchmarks.overloads.load", "--servers", cluster.endpoints]
    line += ["--rank", str(rank), "--ranks", str(ranks), "--model-bytes", str(model_bytes), "--record", str(file)]
    return cluster.start_child(f"load {rank}", line, {"PYTHONPATH": str(ROOT)})


def steps(files: list[Path]) -> list[int]:
    return [records.read(file, rank).last_step + 1 for rank, file in enumerate(files)]


# --- what must hold


def always(report: dict[str, Any], counts: Counter[str]) -> dict[str, bool]:
    """Whatever the machine."""
    fine = ("refused_RESOURCE_EXHAUSTED_BUSY", "refused_DEADLINE_EXCEEDED", "refused_CANCELLED")
    return {
        "no_leader_changes": report["leader_changes"] == 0,
        "memory_within_its_bound": all(one["mb_max"] <= one["mb_bound"] for one in report["memory"].values()),
        "descriptors_bounded": all(
            one["max"] <= one["begin"] + DESCRIPTORS_MORE_MAX for one in report["descriptors"].values()
        ),
        "status_always_answers": report["answers"] == report["questions"],
        "refusals_name_a_time": not counts["refused_without_a_time"],
        "who_was_refused_waits": not counts["came_too_early"],
        "nothing_else_was_refused": not [name for name in counts if name.startswith("refused_R") and name not in fine],
        "nobody_failed": not [name for name in counts if name.startswith("failed_")],
    }


def timed(report: dict[str, Any]) -> dict[str, bool]:
    return {
        "memory_flat": all(
            one["mb_per_minute"] <= max(FLAT_MB_PER_MINUTE, FLAT_SHARE_PER_MINUTE * one["mb_begin"])
            for one in report["memory"].values()
        ),
        "descriptors_flat": all(
            one["per_minute"] <= FLAT_DESCRIPTORS_PER_MINUTE for one in report["descriptors"].values()
        ),
        "loop_lag_p99": all(one["p99"] <= LAG_P99_MS_MAX for one in report["loop_lag_ms"].values()),
    }


if __name__ == "__main__":
    sys.exit(main())
