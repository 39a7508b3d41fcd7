"""What is claimed of faults, judged from results of `paramserver chaos run` and `soak`.

    paramserver chaos run --suite full --out full
    python -m benchmarks.faults.claims full/chaos.json soak/chaos.json --out claims.json

Several results count together. Exit code 1 when a claim is not met.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import machine, results, targets
from benchmarks.common.targets import Row, Target
from paramserver.lab.chaos.figures import percentile
from paramserver.lab.chaos.result import ChaosResult, FaultResult, from_json

ELECTION_TIMEOUT_MS = 300.0
SILENT_LEADER_MS = 2 * ELECTION_TIMEOUT_MS + 150.0
LEADS_NOTHING = "leads nothing"
FAULTS_MIN = 500


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", metavar="CHAOS_JSON")
    parser.add_argument("--out", metavar="FILE", help="write the JSON here too")
    options = parser.parse_args(arguments)
    runs = [from_json(json.loads(path.read_text())) for path in options.results]
    rows = judged(runs)
    print("\n".join(targets.table(rows)), file=sys.stderr)
    results.write(
        {
            "benchmark": "faults",
            "command": machine.command("faults.claims"),
            "runs": [
                {"command": run.command, "machine": run.machine, "versions": run.versions, "durability": run.durability}
                for run in runs
            ],
            "targets": rows,
        },
        options.out,
    )
    return 1 if any(row["met"] is False for row in rows) else 0


def judged(runs: Sequence[ChaosResult]) -> list[Row]:
    faults = [one for run in runs for one in run.faults if one.valid]
    killed = stalls(faults, "kill_leader")
    rows = [
        _less("kill_leader_p50", "kill_leader: stall, median, ms", 100, 50, percentile(killed, 0.5)),
        _less("kill_leader_max", "kill_leader: stall, worst, ms", 400, 200, percentile(killed, 1.0)),
        _less("transfer_p50", "planned transfer: stall, median, ms", 25, None, percentile(transfers(faults), 0.5)),
    ]
    for kind in ("pause_leader", "black_hole"):
        value = percentile(stalls(faults, kind), 0.95)
        rows.append(_less(f"{kind}_p95", f"{kind}: stall, 95 %, ms", SILENT_LEADER_MS, None, value))
    followers = [
        one.step_p99_ratio
        for one in faults
        if one.step_p99_ratio is not None and LEADS_NOTHING in one.target
    ]  # fmt: skip
    rows.append(
        _less(
            "follower_p99_ratio", "follower faults: p99 step time to the undisturbed, median", 1.5, None,
            median(followers) if followers else None,
        )
    )  # fmt: skip
    rows.append(Target("faults", "faults injected", FAULTS_MIN, None).judged(float(len(faults))))
    for name, what in (
        ("lost", "acknowledged updates lost"),
        ("duplicated", "updates applied twice"),
        ("stale_reads", "stale linearizable reads"),
        ("not_identical", "faults with other bits than without"),
        ("hangs", "hangs"),
        ("invalid", "faults that prove nothing"),
    ):
        rows.append(_less(name, what, 0, None, float(sum(getattr(run.summary, name) for run in runs))))
    rows.append(_less("problems", "checks that failed", 0, None, float(sum(len(run.problems) for run in runs))))
    grown = [one for run in runs for one in run.growth]
    for field, what in (
        ("rss_mb_per_minute", "memory of a server in the soak, worst, MB a minute"),
        ("descriptors_per_minute", "descriptors of a server in the soak, worst, a minute"),
    ):
        slopes = [value for one in grown if (value := getattr(one, field)) is not None]
        rows.append(_less(field, what, 10 if "rss" in field else 2, None, max(slopes, default=None)))
    return rows


def stalls(faults: Sequence[FaultResult], kind: str) -> list[float]:
    return [one.stall_ms for one in faults if one.kind == kind and one.stall_ms is not None]


def transfers(faults: Sequence[FaultResult]) -> list[float]:
    return [stall for one in faults for stall in one.parameters.get("stalls_ms", ())]


def _less(name: str, what: str, at_most: float, aim: float | None, value: float | None) -> Row:
    return Target(name, what, at_most, aim, less=True).judged(value)


if __name__ == "__main__":
    raise SystemExit(main())
