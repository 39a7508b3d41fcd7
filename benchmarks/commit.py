"""How fast commands commit, and how long a change of leader is felt; etcd and PySyncObj beside it.

    python -m benchmarks.commit --out benchmarks/results/commit.json

Three nodes as processes on loopback, fsync on; a client in another process; each command acknowledged. The state
machine is an append-only counter behind the real log, transport and runtime (benchmarks/commits/server.py). Peers:
etcd, three members (`apt-get install --no-install-recommends etcd-server`), and PySyncObj (`make install-peers`), which
syncs nothing and has its client in the leader's process. A peer that is not installed is named in the result. Every
figure is of one run on one machine, so ratios carry over better than figures. The whole run takes about five minutes;
`--parts` runs some of it alone, and `--quick` all of it for so short that nothing is learnt but that it works.

Owns what is measured, in which order. Must not know: targets, tables.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.commits import changes, peer_etcd, peer_pysyncobj, report
from benchmarks.commits.cluster import LoadFailed, Servers, load
from benchmarks.commits.report import KIB, MIB, Result, Row
from benchmarks.common import machine, results
from paramserver.lab.usage import cpu_s

Loads: TypeAlias = Sequence[tuple[int, int]]
"""(bytes of a command, commands in flight)."""
STREAM_LOADS: Loads = ((100, 1), (100, 32), (100, 1024), (4 * KIB, 32), (64 * KIB, 32), (MIB, 16))
UNARY_LOADS: Loads = ((100, 1), (100, 32), (4 * KIB, 32))
ETCD_LOADS: Loads = ((100, 1), (100, 32), (4 * KIB, 32), (64 * KIB, 32), (MIB, 16))
PYSYNCOBJ_LOADS: Loads = ((100, 1), (100, 32), (100, 1024), (4 * KIB, 32), (64 * KIB, 32), (MIB, 16))
GROUPS = 100
IDLE_S = 10.0
QUIET_S = 6.0
"""All groups must have slept for so long: leaders that move to their places wake theirs."""
TRIES = 3
QUICK = {
    "seconds": 0.3,
    "kills": 2,
    "transfers": 2,
    "groups": 6,
    "idle_s": 0.5,
    "loads": [(100, 1), (100, 32), (MIB, 16)],
}


def ours(folder: Path, options: argparse.Namespace) -> Result:
    """Many commands in a message, then a call each."""
    rows = []
    with Servers(folder) as servers:
        for mode, loads in (("stream", STREAM_LOADS), ("unary", UNARY_LOADS)):
            for size, inflight in wanted(loads, options):
                found = measured(servers, mode, size, inflight, options.seconds)
                rows.append(row("paramserver", mode, size, inflight, "fsync", found))
    return {"rows": rows}


def measured(servers: Servers, mode: str, size: int, inflight: int, seconds: float) -> Row:
    """Begun again when leadership changes meanwhile; `tries` says so."""
    for tries in range(1, TRIES + 1):
        leader = servers.leader()
        spent, count = cpu(servers), servers.count(leader)
        try:
            found = load(mode, servers.addresses[leader], size=size, inflight=inflight, seconds=seconds)
        except LoadFailed as error:
            if tries == TRIES:
                raise
            print(f"again: {error}", file=sys.stderr, flush=True)
            continue
        commands = max(1, servers.count(leader) - count)
        per_op = {node: (now - spent[node]) / commands * 1e6 for node, now in cpu(servers).items()}
        found["leader_cpu_us_per_op"] = round(per_op.pop(leader), 1)
        found["follower_cpu_us_per_op"] = round(max(per_op.values()), 1)
        return {**found, "tries": tries}
    raise AssertionError("the last try returns or raises")


def etcd(folder: Path, options: argparse.Namespace) -> Result:
    path = peer_etcd.program()
    if path is None:
        return {"missing": {"etcd": peer_etcd.INSTALL}}
    rows = []
    cluster = peer_etcd.Etcd(folder)
    try:
        cluster.start()
        for size, inflight in wanted(ETCD_LOADS, options):
            found = load("etcd", cluster.leader(), size=size, inflight=inflight, seconds=options.seconds)
            rows.append(row("etcd", "unary", size, inflight, "fsync", found))
    finally:
        cluster.stop()
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout.split("\n", 1)[0]
    return {"rows": rows, "peers": {"etcd": version.removeprefix("etcd Version: ")}}


def pysyncobj(folder: Path, options: argparse.Namespace) -> Result:
    path = peer_pysyncobj.interpreter()
    if path is None:
        return {"missing": {"pysyncobj": peer_pysyncobj.INSTALL}}
    durability = "none; client in the leader's process"
    rows = []
    loads = wanted(PYSYNCOBJ_LOADS, options)
    for some in ([one for one in loads if one[1] == 1], [one for one in loads if one[1] > 1]):
        for found in peer_pysyncobj.run(folder, path, some, options.seconds) if some else ():
            rows.append(row("pysyncobj", "in process", found.pop("size"), found.pop("inflight"), durability, found))
    return {"rows": rows, "peers": {"pysyncobj": peer_pysyncobj.version(path)}}


def kills(folder: Path, options: argparse.Namespace) -> Result:
    return {"kills": said("kills", changes.kills(folder, options.kills))}


def transfers(folder: Path, options: argparse.Namespace) -> Result:
    return {"transfers": said("transfers", changes.transfers(folder, options.transfers))}


def idle(folder: Path, options: argparse.Namespace) -> Result:
    """What many groups cost that do nothing."""
    with Servers(folder, groups=options.groups) as servers:
        servers.await_leaders(options.groups)
        settled_s = servers.await_asleep(QUIET_S)
        began_s, spent = time.monotonic(), cpu(servers)
        time.sleep(options.idle_s)  # the measured time itself
        wall_s = time.monotonic() - began_s
        percent = {node: round((now - spent[node]) / wall_s * 100, 2) for node, now in cpu(servers).items()}
        awake = servers.awake()
    found = {"groups": options.groups, "nodes": 3, "seconds": options.idle_s, "settled_s": round(settled_s, 1)}
    found |= {"awake_at_the_end": awake, "cpu_percent_of_a_core": percent, "worst_percent": max(percent.values())}
    return {"idle": said("idle", found)}


PARTS: dict[str, Callable[[Path, argparse.Namespace], Result]] = {
    "ours": ours,
    "etcd": etcd,
    "pysyncobj": pysyncobj,
    "kills": kills,
    "transfers": transfers,
    "idle": idle,
}


def cpu(servers: Servers) -> dict[int, float]:
    return {node: cpu_s([pid]) for node, pid in servers.pids.items()}


def row(system: str, mode: str, size: int, inflight: int, durability: str, found: Row) -> Row:
    return said(
        "row",
        {"system": system, "mode": mode, "bytes": size, "in_flight": inflight, "durability": durability, **found},
    )


def said(what: str, found: Result) -> Result:
    """A run takes minutes: show what there is."""
    print(f"{what}: {found}", file=sys.stderr, flush=True)
    return found


def wanted(loads: Loads, options: argparse.Namespace) -> Loads:
    return [one for one in loads if options.loads is None or one in options.loads]


def run(options: argparse.Namespace) -> Result:
    result: Result = {
        "benchmark": "commit",
        "command": machine.command("commit"),
        "machine": machine.machine(),
        "versions": machine.versions(),
        "nodes": 3,
        "quick": options.quick,
        "seconds_a_row": options.seconds,
        "rows": [],
        "peers": {},
        "missing": {},
    }
    began_s = time.monotonic()
    for part in options.parts:
        folder = Path(tempfile.mkdtemp(prefix="paramserver-commit-"))
        try:
            for key, value in PARTS[part](folder, options).items():
                if isinstance(value, list):
                    result[key] += value
                elif isinstance(result.get(key), dict):
                    result[key].update(value)
                else:
                    result[key] = value
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    result["ratios"] = report.ratios(result["rows"])
    result["targets"] = report.targets(result)
    result["wall_s"] = round(time.monotonic() - began_s, 1)
    return result


def parts_of(text: str) -> list[str]:
    parts = text.split(",")
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no parts {unknown}; there are {', '.join(PARTS)}")
    return parts


def loads_of(text: str) -> list[tuple[int, int]]:
    pairs = (one.split(":") for one in text.split(","))
    return [(int(size), int(inflight)) for size, inflight in pairs]


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=list(PARTS), type=parts_of, metavar="PART,...", help=", ".join(PARTS))
    parser.add_argument("--loads", type=loads_of, metavar="BYTES:INFLIGHT,...", help="of the rows, only these")
    parser.add_argument("--seconds", default=3.0, type=float, help="measured, a row")
    parser.add_argument("--kills", default=100, type=int)
    parser.add_argument("--transfers", default=50, type=int)
    parser.add_argument("--groups", default=GROUPS, type=int, help="idle ones")
    parser.add_argument("--idle-s", default=IDLE_S, type=float, help="measured while they do nothing")
    parser.add_argument("--quick", action="store_true", help="a short slice of everything: " + str(QUICK))
    parser.add_argument("--out", metavar="FILE", help="write the JSON here too")
    options = parser.parse_args(arguments)
    if options.quick:
        vars(options).update(QUICK)
    return options


def main() -> None:
    options = parsed()
    result = run(options)
    results.write(result, options.out)
    print(report.table(result), flush=True)


if __name__ == "__main__":
    main()
