"""How much goes through a replicated cluster when every step pushes a gradient and pulls the new weights, beside what
others move unreplicated.

    python -m benchmarks.push_pull --model-mb 64 --workers 1,2,4 --codec fp32 --replicas 3 \\
        --peers torch-rpc,gloo,redis,ray --out FILE

Loopback TCP, SGD, fsync on; worker processes that use the public API alone. MB/s by RULES F2: bytes pushed and pulled,
counted as fp32 model bytes, over wall time, summed over workers. A model of N MB has N * 2**20 bytes; MB/s and GB are
powers of ten. CPU seconds are those of all server and worker processes. All systems of a case are started, with the
same malloc environment, and take turns of a few seconds in several rounds; rows hold medians over rounds, and a ratio
is the median over rounds of ours over theirs. A peer that is not installed is named in the result instead of its rows:

    make install-peers
    apt-get install --no-install-recommends redis-server

Suites: `figures` are the cases that are named, or without any those that targets are set for; `sweep` goes over
workers, sizes, groups and delays; `tensors`, `pulls` and `memory` ask what their files say. `--quick` goes through a
suite in seconds, and measures nothing worth knowing.

Owns the command line and the result's head. Must not know: how anything is measured.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import machine, results
from benchmarks.pushpull.comparing import Found
from benchmarks.pushpull.peers.known import PEERS
from benchmarks.pushpull.profiling import profiled
from benchmarks.pushpull.suites import figures, memory, pulls, sweep, tensors
from benchmarks.pushpull.trees import MALLOC
from benchmarks.pushpull.turns import SETTLE_S, Effort

SUITES: dict[str, Callable[[argparse.Namespace, Effort], Found]] = {
    "figures": figures.run,
    "sweep": sweep.run,
    "tensors": tensors.run,
    "pulls": pulls.run,
    "memory": memory.run,
    "profile": profiled,
}
CODECS = ("fp32", "bf16", "fp16")
QUICK = {"rounds": 1, "seconds": 0.2, "warm_up_mb": 8, "settle_s": 0.1}


def run(options: argparse.Namespace) -> dict[str, Any]:
    began_s = time.monotonic()
    effort = Effort(
        rounds=options.rounds, seconds=options.seconds, warm_up_mb=options.warm_up_mb, settle_s=options.settle_s
    )
    found = SUITES[options.suite](options, effort)
    return {
        "benchmark": "push_pull",
        "suite": options.suite,
        "command": machine.command("push_pull"),
        "machine": machine.machine(),
        "versions": {**machine.versions(), **found.peers},
        "malloc": MALLOC,
        "quick": options.quick,
        "rounds": options.rounds,
        "seconds_a_turn": options.seconds,
        "rows": found.rows,
        "ratios": found.ratios,
        "missing": found.missing,
        "wall_s": round(time.monotonic() - began_s, 1),
    }


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="figures", choices=list(SUITES))
    parser.add_argument("--parts", type=names(list(sweep.PARTS)), help="of the sweep: " + ",".join(sweep.PARTS))
    parser.add_argument("--model-mb", type=numbers(1, 1 << 16), metavar="MB,...", help="of figures [64], of memory")
    parser.add_argument("--workers", type=numbers(1, 64), metavar="N,...", help="of figures [1,2,4]")
    parser.add_argument(
        "--codec", type=names(CODECS), metavar="CODEC,...", help="of figures [fp32]: " + ",".join(CODECS)
    )
    parser.add_argument("--log-codec", default="fp32", choices=CODECS, help="of figures: of sums in the log [fp32]")
    parser.add_argument("--replicas", default=3, type=int, choices=(1, 3), help="of each group (that many servers) [3]")
    parser.add_argument("--peers", default=[], type=names(list(PEERS)), metavar="PEER,...", help=",".join(PEERS))
    parser.add_argument(
        "--against-one", default=True, action=argparse.BooleanOptionalAction, help="one replica of ours beside [yes]"
    )
    parser.add_argument("--rounds", default=5, type=int, help="turns of each system [5]")
    parser.add_argument("--seconds", default=3.0, type=float, help="of a turn, about [3]")
    parser.add_argument("--warm-up-mb", default=640, type=int, help="pushed by each rank before anything counts [640]")
    parser.add_argument("--settle-s", default=SETTLE_S, type=float, help="waited at most until a system is quiet [0.6]")
    parser.add_argument("--profile", metavar="DIR", help="where the suite `profile` leaves the stacks that py-spy took")
    parser.add_argument("--quick", action="store_true", help="a short slice of everything in the suite")
    parser.add_argument("--out", metavar="FILE", help="write the JSON here too")
    options = parser.parse_args(arguments)
    if options.profile:
        options.suite = "profile"
    elif options.suite == "profile":
        parser.error("the suite profile needs --profile DIR")
    if options.quick:
        vars(options).update(QUICK)
        if options.suite == "figures" and options.model_mb is None:
            options.model_mb, options.workers = [1], options.workers or [1, 2]
    return options


def numbers(low: int, high: int) -> Callable[[str], list[int]]:
    def read(text: str) -> list[int]:
        found = [int(one) for one in text.split(",")]
        odd = [one for one in found if not low <= one <= high]
        if odd:
            raise argparse.ArgumentTypeError(f"{odd[0]}: expected {low} to {high}")
        return found

    return read


def names(known: Sequence[str]) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        found = [one for one in text.split(",") if one]
        odd = [one for one in found if one not in known]
        if odd:
            raise argparse.ArgumentTypeError(f"{odd[0]!r}: expected some of {', '.join(known)}")
        return found

    return read


def main() -> None:
    options = parsed()
    results.write(run(options), options.out)


if __name__ == "__main__":
    main()
