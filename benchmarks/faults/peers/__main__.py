"""Every peer through every fault that it can take, as one JSON file.

    python -m benchmarks.faults.peers [--quick] [--peers NAME,...] [--out FILE]

Episodes run `--jobs` at a time, for most of their time is waiting. A peer that is missing is named with what installs
it. `python -m benchmarks.faults.peers.report` makes the tables.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.common import machine, results
from benchmarks.faults.peers import drill
from benchmarks.faults.peers.known import PEERS
from benchmarks.faults.peers.ledger import CHECKPOINT_EVERY, COMPUTE_S
from benchmarks.faults.peers.system import FAULTS, Peer, PeerFailed, Supervised
from benchmarks.pushpull.system import Unavailable

REPETITIONS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="names with commas between (default: all)")
    parser.add_argument("--faults", default=",".join(FAULTS))
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    parser.add_argument("--seed", type=int, default=1, help="of the first repetition: when in a run the fault comes")
    parser.add_argument("--jobs", type=int, default=3, help="episodes at a time")
    parser.add_argument("--quick", action="store_true", help="one repetition")
    parser.add_argument("--out", metavar="FILE", help="write the JSON here too")
    options = parser.parse_args()
    results.write(run(options), options.out)


def run(options: argparse.Namespace) -> dict[str, Any]:
    began_s = time.monotonic()
    names = [peer.name for peer in PEERS] if options.peers is None else options.peers.split(",")
    unknown = set(names) - {peer.name for peer in PEERS}
    if unknown:
        raise SystemExit(f"no peer {', '.join(sorted(unknown))}; there are: {', '.join(one.name for one in PEERS)}")
    chosen: list[type[Peer]] = []
    missing: dict[str, str] = {}
    versions: dict[str, str] = {}
    for peer in (one for one in PEERS if one.name in names):
        try:
            versions |= peer.versions()
            chosen.append(peer)
        except Unavailable as error:
            missing[peer.name] = str(error)
    repetitions = 1 if options.quick else options.repetitions
    wanted = options.faults.split(",")
    todo = [
        (peer, fault, options.seed + repetition)
        for repetition in range(repetitions)
        for peer in chosen
        for fault in peer.faults
        if fault in wanted
    ]
    with ThreadPoolExecutor(options.jobs) as pool:
        episodes = list(pool.map(lambda one: attempt(*one), todo))
    return {
        "benchmark": "faults_peers",
        "format": 1,
        "command": machine.command("faults.peers"),
        "machine": machine.machine(),
        "versions": {**machine.versions(), **versions},
        "wall_s": round(time.monotonic() - began_s, 1),
        "settings": {
            "hang_s": drill.HANG_S,
            "pause_s": drill.PAUSE_S,
            "worker_back_s": drill.BACK_S,
            "checkpoint_every_steps": CHECKPOINT_EVERY,
            "compute_ms": COMPUTE_S * 1000,
            "jobs": options.jobs,
        },
        "peers": {
            peer.name: {
                "label": peer.label,
                "durability": peer.durability,
                "load": peer.load,
                "ranks": peer.ranks,
                "supervised": issubclass(peer, Supervised),
            }
            for peer in chosen
        },
        "episodes": episodes,
        "missing": missing,
    }


def attempt(kind: type[Peer], fault: str, seed: int) -> dict[str, Any]:
    """An episode that proves nothing is tried once more, and says so if that one does not, either."""
    for last in (False, True):
        try:
            found = drill.episode(kind, fault, seed)
            break
        except (PeerFailed, OSError) as error:
            found = {"peer": kind.name, "fault": fault, "seed": seed, "invalid": str(error)}
            if last:
                break
    print(f"{found['peer']:<30} {fault:<13} {outcome(found)}", file=sys.stderr, flush=True)
    return found


def outcome(found: dict[str, Any]) -> str:
    if "invalid" in found:
        return f"INVALID: {found['invalid']}"
    keys = ("seen", "after_ms", "goes_on", "restarted", "stall_ms", "acknowledged", "lost", "duplicated")
    return " ".join(f"{key}={found[key]}" for key in (*keys, "steps_redone", "what"))


if __name__ == "__main__":
    main()
