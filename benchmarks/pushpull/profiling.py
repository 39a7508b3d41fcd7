"""Where the time of our own processes goes: CPU seconds by thread, and frames by py-spy, while steps are taken."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.common import profile
from benchmarks.pushpull import rows
from benchmarks.pushpull.case import Case
from benchmarks.pushpull.comparing import Found
from benchmarks.pushpull.ours import OurOptions, Ours
from benchmarks.pushpull.turns import Effort, Turns, take_turn, warm_up


def profiled(options: argparse.Namespace, effort: Effort) -> Found:
    """Times and frames are of two turns: py-spy costs time itself."""
    found = Found()
    for model_mb in options.model_mb or [64]:
        for workers in options.workers or [1]:
            case = Case(model_mb=model_mb, workers=workers, codec=(options.codec or ["fp32"])[0])
            folder = Path(options.profile) / f"{case.model_mb}mb-{case.workers}w"
            with Ours(case, OurOptions(replicas=options.replicas)) as system:
                step_s = warm_up(system, effort.warm_up_mb, effort.settle_s)
                named = {child.name: child.pid for child in system.children}
                threads = profile.Threads(named)
                turn = take_turn(system, effort.seconds, step_s, effort.settle_s)
                by_thread = threads.since((turn.steps + 1) * case.step_bytes / 1e9)
                seconds = max(1, round(effort.seconds))
                # More steps than can be taken while it samples; what is left of them is thrown away with the cluster.
                system.gate.grant(round(4 * seconds / step_s) + 10)
                frames = profile.record(named, seconds, folder)
                system.check()
                more = {"cpu_s_per_gb_by_thread": by_thread, "frames": frames}
                found.add_row(rows.row(Turns(system, [turn]), **more))
    return found
