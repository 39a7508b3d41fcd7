"""A whole run: stages of a plan one after the other, judged, and put together into a `ChaosResult`.

Owns the working folder and what becomes of it. Invariants: what failed keeps its logs and data folders in one place and
says which command makes the same plan again; Ctrl-C leaves no process, and no folder that nobody asked for. Must not
know how it is shown: `tell` gets a line of text for each thing that happens.
"""

from __future__ import annotations

import datetime
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from paramserver.lab import machine
from paramserver.lab.chaos import counting, figures, reference, verdict
from paramserver.lab.chaos.growth import unwatched
from paramserver.lab.chaos.load import COUNTING, DIGITS, READS
from paramserver.lab.chaos.nemesis import SERVER_FLAGS, StageRun, run_stage
from paramserver.lab.chaos.plan import Plan, Planned, drawn, skipped
from paramserver.lab.chaos.result import (
    BIN_MS,
    ChaosResult,
    FaultResult,
    Mark,
    Stage,
    Timeline,
    WorkerTimeline,
)
from paramserver.lab.chaos.verdict import Conditions, Struck

DURABILITY = "fsync"
GENTLE_ROUNDS = 3
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosOptions:
    """`minutes`: of a soak, None of a run. `folder`: where logs and data folders lie (None: temporary). `keep`: also
    when all is well. `environment`: of the servers."""

    plan: Plan
    seed: int
    command: str
    replay: str
    minutes: float | None = None
    folder: Path | None = None
    keep: bool = False
    environment: dict[str, str] | None = None


def run_chaos(options: ChaosOptions, tell: Tell) -> ChaosResult:
    folder = options.folder or Path(tempfile.mkdtemp(prefix="paramserver-chaos-"))
    try:
        result = _run(options, folder, tell)
    except KeyboardInterrupt:
        if not options.keep:
            _remove(options, folder)
        raise
    except Exception:
        tell(f"logs and data folders: {folder}")
        raise
    if result.passed and not options.keep:
        _remove(options, folder)
    return result


def _remove(options: ChaosOptions, folder: Path) -> None:
    """What the run put there, and the folder if it was ours."""
    if options.folder is None:
        shutil.rmtree(folder, ignore_errors=True)
        return
    for stage in folder.glob("stage-*"):
        shutil.rmtree(stage, ignore_errors=True)


def _run(options: ChaosOptions, folder: Path, tell: Tell) -> ChaosResult:
    begun, origin_s = datetime.datetime.now(datetime.UTC), time.monotonic()
    plan = options.plan if options.minutes is None else replace(options.plan, together=True)
    stages = drawn(plan, options.seed)
    total = 0 if options.minutes is not None else sum(len(stage.faults) for stage in stages)
    counter = iter(range(1, 10**9))

    def struck(one: Struck, run: StageRun) -> None:
        tell(line_of(one, run, next(counter), total))

    runs = []
    for number, stage in enumerate(stages):
        faults: Iterable[Planned] = stage.faults
        if options.minutes is not None:
            faults = _endless(plan, options.seed, time.monotonic() + options.minutes * 60)
        runs.append(
            run_stage(
                plan,
                stage,
                faults,
                seed=options.seed,
                folder=folder / f"stage-{number}",
                tell=tell,
                struck=struck,
                environment=options.environment,
            )
        )
    tell("comparing with the same training without faults")
    judged = [_judge(one, plan, options.seed, origin_s) for one in runs]
    faults_found = tuple(fault for faults, _ in judged for fault in faults)
    judged_stages = tuple(stage for _, stage in judged)
    growth = tuple(one for run in runs for one in run.growth) if options.minutes is not None else ()
    problems = verdict.problems(
        faults_found,
        judged_stages,
        planned=len(faults_found) if options.minutes is not None else total,
        growth=growth,
        failed=[said for run in runs for said in run.failed],
    )
    if options.minutes is not None:
        problems = (*problems, *unwatched(growth, options.minutes))
    if not faults_found:
        problems = (*problems, "no fault was injected")
    kept = str(folder) if problems or options.keep else ""
    return ChaosResult(
        mode="run" if options.minutes is None else "soak",
        command=options.command,
        replay=options.replay,
        suite=plan.name,
        seed=options.seed,
        plan=plan.as_file(),
        begun=begun.strftime("%Y-%m-%dT%H:%M:%SZ"),
        seconds=round(time.monotonic() - origin_s, 1),
        versions=machine.versions(),
        machine=machine.machine(),
        durability=DURABILITY,
        loads=_loads(plan),
        stages=judged_stages,
        faults=faults_found,
        timeline=_timeline(runs, faults_found, origin_s),
        summary=verdict.summary(faults_found, judged_stages),
        problems=problems,
        skipped=skipped(plan),
        growth=growth,
        kept=kept,
    )


def _endless(plan: Plan, seed: int, end_s: float) -> Iterator[Planned]:
    """Rounds of the plan, each drawn anew from the seed, until the time is up. Faults that end servers come together,
    in one round of a few, so that between them memory can be watched."""
    number = 0
    while True:
        (stage,) = drawn(plan, seed + number * 1_000_003)
        gentle = [one for one in stage.faults if not one.kind.ends_servers]
        harsh = [one for one in stage.faults if one.kind.ends_servers]
        for planned in gentle if number % GENTLE_ROUNDS else [*gentle, *harsh]:
            if time.monotonic() >= end_s:
                return
            yield Planned(planned.kind, planned.repetition + number, planned.draw, planned.hold_s, planned.rest_s)
        number += 1


def _judge(run: StageRun, plan: Plan, seed: int, origin_s: float) -> tuple[tuple[FaultResult, ...], Stage]:
    bits = reference.digests(seed, plan.digits_ranks, verdict.versions_wanted(run.seen))
    conditions = Conditions(stage=run.plan.name, origin_s=origin_s, margin=plan.margin, proxied=run.proxied)
    faults = verdict.judge(run.struck, run.seen, bits, conditions)
    lost, duplicated = verdict.beyond(run.struck, run.seen)
    stale = verdict.stale_beyond(run.struck, run.seen)
    last_s = run.struck[-1].until_s if run.struck else run.begun_s
    different = verdict.differing([look for look in run.seen.digests if look.time_s >= last_s], bits)
    final = list(run.final)
    final += [f"{lost} acknowledged updates are lost"] if lost else []
    final += [f"{duplicated} updates were applied twice"] if duplicated else []
    final += [f"{stale} linearizable reads were stale"] if stale else []
    final += different[: verdict.PROBLEMS_SHOWN_MAX]
    stage = Stage(
        name=run.plan.name,
        nodes=run.nodes,
        proxied=run.proxied,
        seams=run.seams,
        start_ms=round((run.begun_s - origin_s) * 1000, 1),
        end_ms=round((run.ended_s - origin_s) * 1000, 1),
        undisturbed=verdict.undisturbed(run.struck, run.seen),
        final=tuple(final),
        lost=lost,
        duplicated=duplicated,
        stale_reads=stale,
        bit_identical=not different,
    )
    return faults, stage


def _loads(plan: Plan) -> dict[str, dict[str, object]]:
    return {
        DIGITS: {
            "ranks": plan.digits_ranks, "mode": "BSP", "model": "64-128-64-10 perceptron on handwritten digits, adam",
            "pace_ms": 0.0, "checked": "bits of every block at every look, against plain NumPy",
        },
        COUNTING: {
            "ranks": counting.RANKS, "mode": "BSP", "blocks": counting.BLOCKS, "block_bytes": counting.BLOCK_BYTES,
            "pace_ms": plan.counting_pace_ms, "checked": "each update of each rank and block, as a number",
        },
        READS: {
            "pace_ms": plan.reads_pace_ms, "each_node_pace_ms": plan.node_reads_pace_ms,
            "checked": "linearizable reads against what was acknowledged or read before each began",
        },
        "servers": {"flags": " ".join(SERVER_FLAGS)},
    }  # fmt: skip


def _timeline(runs: Sequence[StageRun], faults: Sequence[FaultResult], origin_s: float) -> Timeline:
    def binned(times: Iterable[float]) -> tuple[int, ...]:
        return tuple(sorted(int((at - origin_s) * 1000) // BIN_MS * BIN_MS for at in times))

    return Timeline(
        bin_ms=BIN_MS,
        workers=tuple(
            WorkerTimeline(
                stage=run.plan.name,
                load=worker.load,
                rank=worker.rank,
                steps_ms=binned(worker.times),
                errors_ms=binned(error.time_s for error in worker.errors),
            )
            for run in runs
            for worker in run.seen.workers
        ),
        reads_ms=binned(read.ended_s for run in runs for read in run.seen.reads if read.node == 0),
        marks=tuple(
            Mark(stage=one.stage, kind=one.kind, target=one.target, start_ms=one.start_ms, end_ms=one.end_ms)
            for one in faults
        ),
    )


def line_of(one: Struck, run: StageRun, number: int, total: int) -> str:
    """What is known at once; the rest when the run is judged."""
    stall = figures.stall_ms([worker.times for worker in run.seen.workers], one.start_s, one.end_s)
    if one.problem:
        came = f"FAILED: {one.problem.splitlines()[0]}"
    elif one.hang:
        came = "HANG"
    else:
        came = f"stalled {stall:.0f} ms" if stall is not None else "no step since"
    took = f"{one.end_s - one.start_s:.1f} s, whole after {one.healed_s - one.end_s:.1f} s"
    return f"{number}{f'/{total}' if total else ''} {one.kind}: {one.target}: {came} ({took})"
