"""What turns say: rows and ratios of the result.

Owns their form. A figure of a row is the median over its turns; a ratio is the median over rounds of what the two did
in the same round. Must not know: how turns are taken, targets.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, TypeAlias

from benchmarks.common import results
from benchmarks.pushpull.turns import Turns

Row: TypeAlias = dict[str, Any]


def row(one: Turns, **more: Any) -> Row:
    """`more`: what sets this row apart from others of the same case."""
    system, case = one.system, one.system.case
    lengths = [length for turn in one.turns for length in turn.lengths_ms]
    found: Row = {
        "system": system.name,
        "model_mb": case.model_mb,
        "workers": case.workers,
        "replicas": system.replicas,
        "codec": case.codec,
        "durability": system.durability,
        "mb_per_s": round(statistics.median(one.rates), 1),
        "step_ms": {"p50": results.percentile(lengths, 0.5), "p99": results.percentile(lengths, 0.99)},
        "cpu_s_per_gb": round(statistics.median(turn.cpu_s_per_gb for turn in one.turns), 3),
        "server_cpu_s_per_gb": [
            round(statistics.median(costs), 3)
            for costs in zip(*(turn.server_cpu_s_per_gb for turn in one.turns), strict=True)
        ],
        "server_peak_mb": round(one.turns[-1].server_peak_bytes / 1e6) or None,
        "steps": sum(turn.steps for turn in one.turns),
        "mb_per_s_by_round": [round(rate, 1) for rate in one.rates],
        "cores_busy_elsewhere": round(statistics.median(turn.elsewhere for turn in one.turns), 2),
        **more,
    }
    if system.note:
        found["note"] = system.note
    return found


def ratio(ours: Turns, other: Turns) -> float | None:
    """None when one of them has no turn."""
    pairs = list(zip(ours.rates, other.rates, strict=False))
    return round(statistics.median(mine / theirs for mine, theirs in pairs), 3) if pairs else None


def ratios(ours: Turns, others: Sequence[Turns]) -> dict[str, float]:
    """By the names that the documentation uses."""
    found = {}
    case = ours.system.case
    for other in others:
        same = other.system.name == ours.system.name
        against = f"replicas{ours.system.replicas}_vs_{other.system.replicas}" if same else f"vs_{other.system.name}"
        value = ratio(ours, other)
        if value is not None:
            found[f"{case.name}_{against}"] = value
    return found
