"""How fast commands commit, and how long a change of leader is felt; etcd and PySyncObj beside it.

    python -m benchmarks.commit --out benchmarks/results/commit.json

Three nodes as processes on loopback, fsync on; a client in another process; each command acknowledged. The state machine
is an append-only counter behind the real log, transport and runtime (benchmarks/commits/server.py). Peers: etcd, three
members (`apt-get install --no-install-recommends etcd-server`), and PySyncObj (`make install-peers`), which syncs nothing
and has its client in the leader's process. A peer that is not installed is named in the result. Every figure is of one
run on one machine, so ratios carry over better than figures. `--parts` runs some of it alone.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.commits import etcd
from benchmarks.commits.cluster import Servers, load
from benchmarks.common import machine, results
from paramserver.lab.usage import cpu_s

KIB, MIB = 1 << 10, 1 << 20
LOADS = ((100, 1), (100, 32), (100, 1024), (4 * KIB, 32), (64 * KIB, 32), (MIB, 16))
"""(bytes of a command, commands in flight)."""
UNARY_LOADS = ((100, 1), (100, 32), (4 * KIB, 32))
ETCD_LOADS = ((100, 1), (100, 32), (4 * KIB, 32), (64 * KIB, 32), (MIB, 16))
PYSYNCOBJ_LOADS = ((100, 1), (100, 32), (100, 1024), (4 * KIB, 32), (64 * KIB, 32), (MIB, 16))
Row = dict[str, Any]


def ours(options: argparse.Namespace, folder: Path) -> list[Row]:
    """Streams, then a call each."""
    rows = []
    with Servers(folder) as servers:
        for mode, loads in (("stream", options.loads or LOADS), ("unary", options.unary_loads or UNARY_LOADS)):
            for size, inflight in loads:
                leader = servers.leader()
                before = {node: cpu_s([pid]) for node, pid in servers.pids.items()}
                count = (servers.status(leader) or {})["count"]
                found = load(mode, servers.addresses[leader], size=size, inflight=inflight, seconds=options.seconds)
                commands = (servers.status(leader) or {})["count"] - count
                spent = {node: cpu_s([pid]) - before[node] for node, pid in servers.pids.items()}
                others = [one for node, one in spent.items() if node != leader]
                found["leader_cpu_us_per_op"] = round(spent[leader] / commands * 1e6, 1)
                found["follower_cpu_us_per_op"] = round(max(others) / commands * 1e6, 1)
                rows.append(row("paramserver", mode, size, inflight, "fsync", found))
    return rows


def etcds(options: argparse.Namespace, folder: Path) -> list[Row]:
    rows = []
    cluster = etcd.Etcd(folder)
    try:
        cluster.start()
        for size, inflight in ETCD_LOADS:
            leader = cluster.leader()
            found = load("etcd", leader, size=size, inflight=inflight, seconds=options.seconds)
            rows.append(row("etcd", "unary", size, inflight, "fsync", found))
    finally:
        cluster.stop()
    return rows


def row(system: str, mode: str, size: int, inflight: int, durability: str, found: Row) -> Row:
    made = {"system": system, "mode": mode, "bytes": size, "in_flight": inflight, "durability": durability, **found}
    print(made, file=sys.stderr, flush=True)
    return made


def numbers(text: str) -> list[tuple[int, int]]:
    pairs = (one.split(":") for one in text.split(",") if one)
    return [(int(size), int(inflight)) for size, inflight in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", default=3.0, type=float, help="measured, a row")
    parser.add_argument("--loads", type=numbers)
    parser.add_argument("--unary-loads", type=numbers)
    parser.add_argument("--parts", default="ours,etcd")
    options = parser.parse_args()
    for part in options.parts.split(","):
        folder = Path(tempfile.mkdtemp(prefix="paramserver-commit-"))
        try:
            {"ours": ours, "etcd": etcds}[part](options, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
