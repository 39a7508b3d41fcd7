"""`paramserver sim run`: many seeds of the simulator.

Owns how it is asked for and shown. Invariants: the last line on standard output is one JSON object, however the
campaign ends; progress goes to standard error.
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING

from paramserver.cli import codes, flags
from paramserver.cli.flags import Flag
from paramserver.cli.text import escape

if TYPE_CHECKING:
    from consensus.simulation.report import Report
    from paramserver.lab.simulation.campaign import Totals

SEED_MAX = 2**63
SEEDS_MAX = 10_000_000
NODES_MAX = 9
JOBS_MAX = 256
PROGRESS_S = 5.0
FAILURES_SHOWN = 3
"""Failing seeds that are shrunk and shown in full."""
KINDS = ("all", "ledger", "churn", "training", "system", "reshaped", "keeping")


def seed_range(text: str) -> range:
    """`A:B`, half-open."""
    first, colon, below = text.partition(":")
    whole = first.isascii() and first.isdigit() and below.isascii() and below.isdigit()
    if not colon or not whole or len(text) > 40 or int(below) > SEED_MAX:
        raise ValueError("expected A:B with whole numbers 0 <= A < B, such as 0:200 for seeds 0 to 199")
    if int(first) >= int(below):
        raise ValueError("no seed lies in that range; A:B means A up to, and without, B")
    if int(below) - int(first) > SEEDS_MAX:
        raise ValueError(f"at most {SEEDS_MAX} seeds at a time")
    return range(int(first), int(below))


DESCRIPTION = "Run whole simulated clusters, one a seed, under faults that the seed draws, and check them."
EPILOG = (
    "Of sixteen seeds two train a model, one runs the whole system, one the whole system while replicas move, one\n"
    "while the model is saved, loaded and deleted, and eleven are clients of a ledger, a register and a counter: five\n"
    "of these while members of groups change.\n\n"
    "example:\n  paramserver sim run --seeds 0:200 --json\n"
)
FLAGS = (
    Flag("--seeds", "seeds to run, A up to and without B", seed_range, metavar="A:B", required=True),
    Flag("--nodes", "nodes of every cluster; drawn by the seed if not given", flags.integer(1, NODES_MAX)),
    Flag("--kind", "what to simulate: " + ", ".join(KINDS), flags.choice(*KINDS), "all"),
    Flag("--jobs", "processes to run seeds in", flags.integer(1, JOBS_MAX), 1),
    Flag("--no-shrink", "show failing seeds as they are"),
    Flag("--json", "nothing on standard output but one JSON object"),
)


def run(values: flags.Values, problems: list[str]) -> int:
    flags.raise_problems(problems, "sim run")
    from paramserver.lab.simulation import campaign

    kind = "" if values["kind"] == "all" else values["kind"]
    progress = Progress(len(values["seeds"]))
    totals, wall_s, interrupted = campaign.campaign(
        values["seeds"], kind=kind, nodes=values["nodes"], jobs=values["jobs"], progress=progress.show
    )
    progress.end(totals, interrupted)
    if not interrupted and not values["no_shrink"]:
        interrupted = _explain(totals, kind, values["nodes"])
    if not values["json"]:
        _show(totals, wall_s)
    print(json.dumps(totals.as_json(wall_s)))
    if totals.failed:
        return codes.CHECK_FAILED
    return codes.INTERRUPTED if interrupted else codes.OK


class Progress:
    """Lines on standard error, now and then and for each failure."""

    def __init__(self, seeds: int) -> None:
        self._seeds = seeds
        self._said_s = self._began_s = time.monotonic()

    def show(self, totals: Totals, report: Report) -> None:
        now_s = time.monotonic()
        if not report.ok:
            _say(f"seed {report.seed}: {escape(report.failure.splitlines()[0], 400)}")
        if now_s - self._said_s >= PROGRESS_S:
            self._said_s = now_s
            rate = totals.seeds / max(now_s - self._began_s, 0.001)
            left_s = (self._seeds - totals.seeds) / max(rate, 0.001)
            failed = f", {len(totals.failed)} failed" if totals.failed else ""
            _say(f"{totals.seeds} of {self._seeds} seeds, {rate:.1f} a second, {left_s:.0f} s left{failed}")

    def end(self, totals: Totals, interrupted: bool) -> None:
        if interrupted:
            _say(f"interrupted after {totals.seeds} of {self._seeds} seeds")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _explain(totals: Totals, kind: str, nodes: int | None) -> bool:
    """Show the first failing seeds, shrunk. True when interrupted."""
    from paramserver.lab.simulation import campaign

    try:
        for report in sorted(totals.failed, key=lambda failed: failed.seed)[:FAILURES_SHOWN]:
            _say(f"seed {report.seed}: looking for a smaller case that fails alike")
            shrunk = campaign.shrink_one(report.seed, report, kind=kind, nodes=nodes)
            _say(f"{shrunk.report.text()}\n\nafter {shrunk.runs} runs, shrunk to:\n{shrunk.case.describe()}")
    except KeyboardInterrupt:
        return True
    return False


def _show(totals: Totals, wall_s: float) -> None:
    seconds = totals.simulated_ms / 1000
    print(
        f"{totals.seeds} seeds in {wall_s:.1f} s: {totals.events} events, {totals.operations_checked} answers checked"
    )
    print(f"{seconds / 60:.1f} simulated minutes, {seconds / max(wall_s, 0.001):.1f} times real time")
    for name, count in sorted(totals.faults.items()):
        print(f"  {count:8}  {name}")
    if totals.failed:
        print("failed: " + " ".join(str(seed) for seed in sorted(report.seed for report in totals.failed)))
        print("paramserver sim replay SEED shows a run again")
