"""A result as a Markdown table, a row a kind. Must not know how the figures came about."""

from __future__ import annotations

from collections.abc import Sequence

from paramserver.lab.chaos.figures import distribution
from paramserver.lab.chaos.result import NO_ERROR, ChaosResult, FaultResult

HEAD = (
    "fault", "n", "seen as", "stall p50", "p99", "max", "reads away", "writes away", "lost", "doubled", "stale reads",
    "bit-identical", "leader changes",
)  # fmt: skip


def markdown(result: ChaosResult) -> str:
    summary = result.summary
    lines = [
        f"# Faults injected: {result.suite}, seed {result.seed}",
        "",
        (
            f"{summary.faults} faults, {summary.invalid} invalid; {summary.lost} updates lost, {summary.duplicated} "
            f"applied twice, {summary.stale_reads} stale linearizable reads, {summary.not_identical} not "
            f"bit-identical, {summary.hangs} hangs. Times are milliseconds; away: median time without an answer."
        ),
        "",
        (
            f"`{result.command}`: {result.machine.get('cores')} cores of {result.machine.get('cpu')}, durability "
            f"{result.durability}, {result.seconds:g} s. The same plan again: `{result.replay}`."
        ),
        "",
        _row(HEAD),
        _row(["---"] * len(HEAD)),
    ]
    kinds: dict[str, list[FaultResult]] = {}
    for one in result.faults:
        if one.valid:
            kinds.setdefault(one.kind, []).append(one)
    lines += [_row(row(kind, some)) for kind, some in kinds.items()]
    lines += [_row([kind, "0", f"not run: {why}", *[""] * (len(HEAD) - 3)]) for kind, why in result.skipped.items()]
    if result.problems:
        lines += ["", "## What failed", "", *(f"- {problem}" for problem in result.problems)]
        lines += [f"- logs and data folders: {result.kept}"] * bool(result.kept)
    return "\n".join([*lines, ""])


def row(kind: str, some: Sequence[FaultResult]) -> list[str]:
    stalls = distribution(one.stall_ms for one in some if one.stall_ms is not None)
    reads = distribution(one.reads_unavailable_ms for one in some).p50
    writes = distribution(one.writes_unavailable_ms for one in some).p50
    errors = sorted({one.error for one in some if one.error != NO_ERROR})
    seen = "hang" if any(one.hang for one in some) else ", ".join(errors) or "a pause"
    if seen == "a pause" and (stalls.max or 0.0) < 10.0:
        seen = "nothing"
    return [
        kind,
        str(len(some)),
        seen,
        *(_ms(value) for value in (stalls.p50, stalls.p99, stalls.max, reads, writes)),
        str(sum(one.lost for one in some)),
        str(sum(one.duplicated for one in some)),
        str(sum(one.stale_reads for one in some)),
        "yes" if all(one.bit_identical for one in some) else "NO",
        f"{sum(one.leader_changes for one in some) / len(some):.1f}",
    ]


def _ms(value: float | None) -> str:
    return "for ever" if value is None else f"{value:.0f}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
