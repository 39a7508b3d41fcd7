"""What each byte of a step must cost, term by term, and how far above that floor a cluster of ours is.

    python -m benchmarks.terms --out docs/benchmarks/terms.json

CPU seconds per GB of transport, sum, log, apply, digest, copy and checksum, each done alone with nothing of ours around
it but the arithmetic (the last two are not in the floor); what a block costs a cluster however small it is (Python,
messages, consensus), from steps of tiny blocks; and real steps of a cluster. The floor is that of the design: W pushes,
W sums, W pulls and two replications of every byte, and three logs, applications and digests, whoever pushes. Takes
about three minutes; `--quick` a fraction of one, and then the figures say nothing.

Owns the sum of the terms. Must not know: targets, tables.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import machine, results
from benchmarks.floor import alone, transport
from benchmarks.pushpull.case import Case
from benchmarks.pushpull.comparing import measured
from benchmarks.pushpull.ours import OurOptions, Ours
from benchmarks.pushpull.turns import SETTLE_S, Effort

REPLICAS = 3
MODEL_MB = 64
TINY_BLOCK_KIB, TINY_MODEL_MB, TINY_WARM_UP_STEPS = 4, 4, 10
"""A step of tiny blocks takes most of a second: it is warm long before as much has been pushed as elsewhere."""
BLOCKS_PER_GB = 1e9 / alone.BLOCK_BYTES
TERMS: dict[str, tuple[str, Callable[[float], float]]] = {
    "transport": (
        "gRPC stream of messages of 1 MiB, both sides",
        lambda gb: transport.measure("grpc", gb),
    ),
    "socket": ("bare TCP, both sides, for comparison", lambda gb: transport.measure("tcp", gb)),
    "sum": ("one contribution added to another", alone.total),
    "wal": ("gathered write of 4 MiB to a zeroed file, and fdatasync", alone.log),
    "apply_sgd": ("SGD, as servers apply it", lambda gb: alone.apply("sgd", gb)),
    "apply_adam": ("Adam, as servers apply it", lambda gb: alone.apply("adam", gb)),
    "digest": ("xxh3-128", alone.digest),
    "copy": ("from one block to another, which the floor leaves out", alone.copy),
    "checksum": ("CRC32C, which the floor leaves out", alone.checksum),
}


def floor(terms: Mapping[str, float], workers: int, apply: str = "apply_sgd") -> float:
    """CPU seconds per GB pushed and pulled."""
    each = 2 * terms["transport"] + terms["sum"]
    once = (REPLICAS - 1) * terms["transport"] + REPLICAS * (terms["wal"] + terms[apply] + terms["digest"])
    return (workers * each + once) / (2 * workers)


def shares(terms: Mapping[str, float], workers: int, apply: str = "apply_sgd") -> dict[str, float]:
    """Of the floor, by what it is spent on; they add up to it."""
    per = 2 * workers
    parts = {
        "push": terms["transport"] * workers / per,
        "pull": terms["transport"] * workers / per,
        "sum": terms["sum"] * workers / per,
        "replicate": terms["transport"] * (REPLICAS - 1) / per,
        "wal": terms["wal"] * REPLICAS / per,
        "apply": terms[apply] * REPLICAS / per,
        "digest": terms["digest"] * REPLICAS / per,
    }
    return {name: round(value, 3) for name, value in parts.items()}


def run(options: argparse.Namespace) -> dict[str, Any]:
    began_s = time.monotonic()
    found: dict[str, list[float]] = {name: [] for name in TERMS}
    for _ in range(options.rounds):
        for name, (_, measure) in TERMS.items():
            found[name].append(measure(options.gb))
            print(f"{name}: {found[name][-1]:.3f}", file=sys.stderr, flush=True)
    terms = {name: round(statistics.median(values), 4) for name, values in found.items()}
    effort = Effort(
        rounds=options.rounds,
        seconds=options.seconds,
        warm_up_mb=16 if options.quick else 640,
        settle_s=0.1 if options.quick else SETTLE_S,
    )
    tiny = measured(
        Ours(Case(model_mb=TINY_MODEL_MB, workers=1), OurOptions(block_kib=TINY_BLOCK_KIB)),
        replace(effort, warm_up_mb=min(effort.warm_up_mb, TINY_MODEL_MB * TINY_WARM_UP_STEPS)),
        tiny_blocks=True,
    )
    block_us = tiny["cpu_s_per_gb"] * 2 * (TINY_BLOCK_KIB << 10) / 1e9 * 1e6
    rows, floors, ratios = [tiny], {}, {}
    for workers in options.workers:
        case = Case(model_mb=options.model_mb, workers=workers)
        rows.append(measured(Ours(case), effort))
        print(rows[-1], file=sys.stderr, flush=True)
        floors[f"w{workers}"] = {"cpu_s_per_gb": round(floor(terms, workers), 3), "shares": shares(terms, workers)}
        ratios[f"cpu_{case.model_mb}mb_w{workers}_vs_floor"] = round(
            rows[-1]["cpu_s_per_gb"] / floor(terms, workers), 3
        )
    return {
        "benchmark": "terms",
        "command": machine.command("terms"),
        "machine": machine.machine(),
        "versions": machine.versions(),
        "quick": options.quick,
        "terms": [
            {"term": name, "cpu_s_per_gb": terms[name], "what": what, "rounds": [round(one, 4) for one in found[name]]}
            for name, (what, _) in TERMS.items()
        ],
        "python": {
            "cpu_us_per_block": round(block_us),
            "cpu_s_per_gb": round(block_us * BLOCKS_PER_GB / 2 / 1e6, 3),
            "what": f"all that a block costs four processes however small it is, from blocks of {TINY_BLOCK_KIB} KiB; "
            "per GB pushed and pulled in blocks of 1 MiB, one worker",
        },
        "floor": floors,
        "rows": rows,
        "ratios": ratios,
        "wall_s": round(time.monotonic() - began_s, 1),
    }


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", default=2.0, type=float, help="worked on by each term, each time")
    parser.add_argument("--rounds", default=3, type=int)
    parser.add_argument("--seconds", default=3.0, type=float, help="measured, a row and round")
    parser.add_argument("--model-mb", default=MODEL_MB, type=int)
    parser.add_argument("--workers", default=[1, 2, 4], type=lambda text: [int(one) for one in text.split(",")])
    parser.add_argument("--quick", action="store_true", help="once, and short: nothing is learnt but that it works")
    parser.add_argument("--out", metavar="FILE", help="write the JSON here too")
    options = parser.parse_args(arguments)
    if options.quick:
        vars(options).update(gb=0.1, rounds=1, seconds=0.2, model_mb=1, workers=[1])
    return options


def main() -> None:
    options = parsed()
    results.write(run(options), options.out)


if __name__ == "__main__":
    main()
