"""Many seeds, one after the other or over several processes, and what they came to.

Owns which seed simulates what (of sixteen seeds two train, one is the whole system, one the whole system while replicas
move, one the whole system while the model is saved, loaded and deleted, and the others are clients of ledgers: five of
these on groups whose members change all the time), the sum of the
reports, and the way of a failing seed to a smaller case. Invariants: a seed's report is the same wherever and in
whatever order it runs; an interrupted campaign has the sum of what was done. Must not know: command lines.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import consensus.simulation.case as ledgers
import consensus.simulation.churn as churn
import consensus.simulation.run as ledger_runs
import paramserver.lab.simulation.run as training
import paramserver.lab.simulation.system as system
from consensus.simulation.case import Case
from consensus.simulation.report import Report
from consensus.simulation.shrink import Shrunk, shrink

LEDGER, CHURN, TRAINING, SYSTEM, RESHAPED, KEEPING = "ledger", "churn", "training", "system", "reshaped", "keeping"
KINDS = (LEDGER, CHURN, TRAINING, SYSTEM, RESHAPED, KEEPING)
OF_SIXTEEN = (
    *(LEDGER, CHURN, LEDGER, TRAINING, LEDGER, CHURN, LEDGER, SYSTEM),
    *(LEDGER, CHURN, LEDGER, TRAINING, CHURN, CHURN, KEEPING, RESHAPED),
)


def kind_of(seed: int, wanted: str = "") -> str:
    """What a seed simulates, unless one kind is wanted for all."""
    return wanted or OF_SIXTEEN[seed % len(OF_SIXTEEN)]


def draw_case(seed: int, *, kind: str = "", nodes: int | None = None) -> Case:
    draw = {
        LEDGER: ledgers.draw_case,
        CHURN: churn.draw_churn_case,
        TRAINING: training.draw_case,
        SYSTEM: system.draw_system_case,
        RESHAPED: system.draw_reshaped_case,
        KEEPING: system.draw_system_case,
    }
    return draw[kind_of(seed, kind)](seed, nodes=nodes)


def run_case(case: Case, *, kind: str = "") -> Report:
    run: dict[str, Callable[[Case], Report]] = {
        LEDGER: ledger_runs.run_case,
        CHURN: ledger_runs.run_case,
        TRAINING: training.run_case,
        SYSTEM: system.run_system_case,
        RESHAPED: partial(system.run_system_case, reshaped=True),
        KEEPING: partial(system.run_system_case, keeping=True),
    }
    return run[kind_of(case.seed, kind)](case)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the noise that servers make in the log when a replica does not run; afterwards all is as it was."""
    loggers = [logging.getLogger(name) for name in ("consensus", "paramserver")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def run_one(seed: int, *, kind: str = "", nodes: int | None = None) -> Report:
    with quiet():
        return run_case(draw_case(seed, kind=kind, nodes=nodes), kind=kind)


def shrink_one(seed: int, report: Report, *, kind: str = "", nodes: int | None = None) -> Shrunk:
    """The smallest case found that fails as `report` did."""
    with quiet():
        return shrink(draw_case(seed, kind=kind, nodes=nodes), report, partial(run_case, kind=kind))


@dataclass(slots=True)
class Totals:
    """The sum of all reports so far."""

    seeds: int = 0
    events: int = 0
    simulated_ms: int = 0
    operations_checked: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    """Seeds by what they simulated."""
    failed: list[Report] = field(default_factory=list)
    """Without an order that means anything."""

    def add(self, report: Report, *, kind: str = "") -> None:
        self.seeds += 1
        self.kinds[kind_of(report.seed, kind)] += 1
        self.events += report.events
        self.simulated_ms += report.simulated_ms
        self.operations_checked += report.operations_checked
        self.faults.update(report.faults)
        self.counts.update(report.counts)
        if not report.ok:
            self.failed.append(report)

    def as_json(self, wall_s: float) -> dict[str, object]:
        return {
            "seeds": self.seeds,
            "events": self.events,
            "simulated_hours": round(self.simulated_ms / 3_600_000, 4),
            "faults": dict(sorted(self.faults.items())),
            "operations_checked": self.operations_checked,
            "violations": len(self.failed),
            "failed_seeds": sorted(report.seed for report in self.failed),
            "wall_s": round(wall_s, 2),
            "simulated_to_real": round(self.simulated_ms / 1000 / wall_s, 2) if wall_s else 0.0,
            "kinds": dict(sorted(self.kinds.items())),
        }


def _begin_worker() -> None:
    """Ctrl-C goes to all processes of the terminal; only the first one decides what becomes of it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def reports(seeds: Sequence[int], *, kind: str = "", nodes: int | None = None, jobs: int = 1) -> Iterator[Report]:
    """Of each seed, as they come."""
    run = partial(run_one, kind=kind, nodes=nodes)
    if jobs == 1:
        yield from map(run, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs, initializer=_begin_worker) as pool:
        yield from pool.imap_unordered(run, seeds)


def campaign(
    seeds: Sequence[int],
    *,
    kind: str = "",
    nodes: int | None = None,
    jobs: int = 1,
    progress: Callable[[Totals, Report], None] | None = None,
) -> tuple[Totals, float, bool]:
    """(what it came to, seconds it took, whether it was interrupted)."""
    totals, started, interrupted = Totals(), time.monotonic(), False
    try:
        for report in reports(seeds, kind=kind, nodes=nodes, jobs=jobs):
            totals.add(report, kind=kind)
            if progress is not None:
                progress(totals, report)
    except KeyboardInterrupt:
        interrupted = True
    return totals, time.monotonic() - started, interrupted
