"""A small result, as tests of what reads and shows results need one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from paramserver.lab.chaos.result import (
    Around,
    ChaosResult,
    Distribution,
    FaultResult,
    Growth,
    Mark,
    Stage,
    Summary,
    Timeline,
    WorkerTimeline,
)

FAULT = FaultResult(
    kind="kill_leader",
    repetition=0,
    stage="processes",
    target="node 2, leads group 1",
    parameters={"group": 1, "hold_s": 0.8},
    start_ms=2000.0,
    end_ms=2800.0,
    healed_ms=4000.0,
    until_ms=5000.0,
    invalid="",
    error="none",
    hang=False,
    stall_ms=41.5,
    steps=Around(before=60, during=30, after=80),
    commits=Around(before=240, during=120, after=320),
    reads_unavailable_ms=0.0,
    writes_unavailable_ms=41.5,
    lost=0,
    duplicated=0,
    stale_reads=0,
    bit_identical=True,
    leader_changes=2,
    step_p99_ms=44.0,
    step_p99_ratio=1.3,
    proxied=False,
)


def fault(**changes: Any) -> FaultResult:
    return replace(FAULT, **changes)


def result(**changes: Any) -> ChaosResult:
    plain = ChaosResult(
        mode="run",
        command="paramserver chaos run --suite quick",
        replay="paramserver chaos run --suite quick --seed 1",
        suite="quick",
        seed=1,
        plan={"version": 1, "faults": [{"kind": "kill_leader", "repetitions": 1}]},
        begun="2026-11-21T12:00:00Z",
        seconds=10.0,
        versions={"python": "3.12.3", "paramserver": "0.1.0"},
        machine={"cpu": "one", "cores": 2, "memory_gb": 8.0, "kernel": "6.1"},
        durability="fsync",
        loads={"digits": {"ranks": 2}, "counting": {"ranks": 2}},
        stages=(
            Stage(
                name="processes",
                nodes=3,
                proxied=False,
                seams=False,
                start_ms=0.0,
                end_ms=9000.0,
                undisturbed={"digits": Distribution(p50=18.0, p99=34.0, max=40.0, n=100)},
                final=(),
            ),
        ),
        faults=(FAULT,),
        timeline=Timeline(
            bin_ms=20,
            workers=(
                WorkerTimeline(stage="processes", load="digits", rank=0, steps_ms=tuple(range(0, 9000, 20))),
                WorkerTimeline(
                    stage="processes", load="counting", rank=0, steps_ms=tuple(range(0, 9000, 60)), errors_ms=(2100,)
                ),
            ),
            reads_ms=tuple(range(0, 9000, 100)),
            marks=(
                Mark(
                    stage="processes",
                    kind="kill_leader",
                    target="node 2, leads group 1",
                    start_ms=2000.0,
                    end_ms=2800.0,
                ),
            ),
        ),
        summary=Summary(
            faults=1,
            invalid=0,
            lost=0,
            duplicated=0,
            stale_reads=0,
            not_identical=0,
            hangs=0,
            stall_ms={"kill_leader": Distribution(p50=41.5, p99=41.5, max=41.5, n=1)},
        ),
        problems=(),
        skipped={},
    )
    return replace(plain, **changes)


GROWTH = Growth(
    node=1,
    incarnation=1,
    minutes=10.0,
    rss_mb_begin=80.0,
    rss_mb_end=81.0,
    rss_mb_max=82.0,
    rss_mb_per_minute=0.1,
    descriptors_begin=40,
    descriptors_end=40,
    descriptors_max=44,
    descriptors_per_minute=None,
)
