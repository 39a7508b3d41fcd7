"""The pictures of a report, drawn by matplotlib as SVG documents.

Owns what is drawn. Invariants: the same result gives the same bytes (no date, ids from a fixed salt); text in a picture
is plain text, for `$` in an error's name is no formula. Importing it needs matplotlib, and nothing else in the
laboratory imports it before it is used. Must not know: HTML.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from paramserver.lab.chaos.report.look import COLOURS, FINE, INVALID, colour_of, outcome
from paramserver.lab.chaos.report.page import Picture
from paramserver.lab.chaos.result import ChaosResult, FaultResult, WorkerTimeline

WIDTH = 13.0
FAULTS_A_PANEL = 10
PANELS_MAX = 24
NAMED_MAX = 14
"""More faults in a panel have only their numbers written above."""
BINS_A_PANEL = 240
BIN_MS_MIN = 250
LOAD_COLOURS = ("#1b7f5c", "#8c5bb5", "#3b4552", "#c06014")
READS_COLOUR = "#9aa5b1"
STALL_MS_MIN = 1.0
"""What is shorter is drawn there: the axis is logarithmic."""
SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "paramserver",
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica", "Arial", "DejaVu Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,
}


def drawn(result: ChaosResult) -> tuple[Picture, ...]:
    with mpl.rc_context(SETTINGS):
        found = [timeline(result)] if result.timeline.workers else []
        if any(one.stall_ms is not None for one in result.faults):
            found.append(stalls(result))
    return tuple(found)


# --- throughput over time


def timeline(result: ChaosResult) -> Picture:
    begin_s, end_s = span_s(result)
    count = min(PANELS_MAX, max(1, round(len(result.faults) / FAULTS_A_PANEL)))
    panel_s = max(1, math.ceil((end_s - begin_s) / count))
    bin_ms = max(BIN_MS_MIN, result.timeline.bin_ms, panel_s * 1000 // BINS_A_PANEL)
    rates = throughput(result.timeline.workers, bin_ms)
    top = 1.08 * max((rate for points in rates.values() for _, rate in points), default=1.0)
    figure = Figure(figsize=(WIDTH, 1.95 * count + 0.5), layout="constrained")
    rows = figure.subplots(count, 1, squeeze=False)[:, 0]
    for number, axes in enumerate(rows):
        low, high = begin_s + number * panel_s, begin_s + (number + 1) * panel_s
        _faults(axes, list(enumerate(result.faults, start=1)), low, high)
        for (load, points), colour in zip(rates.items(), LOAD_COLOURS, strict=False):
            inside = [(at, rate) for at, rate in points if low - 1 <= at <= high + 1]
            axes.step(
                [at for at, _ in inside], [rate for _, rate in inside], where="post", color=colour, lw=1, label=load
            )
        reads = [at / 1000 for at in result.timeline.reads_ms if low <= at / 1000 < high]
        axes.plot(reads, [0.0] * len(reads), "|", color=READS_COLOUR, ms=5, label="linearizable reads", clip_on=False)
        errors = [at / 1000 for one in result.timeline.workers for at in one.errors_ms if low <= at / 1000 < high]
        axes.plot(errors, [top * 0.04] * len(errors), "x", color=COLOURS["failed"], ms=4, label="a client's exception")
        axes.set(xlim=(low, high), ylim=(0, top), ylabel="steps/s")
        axes.grid(axis="y", alpha=0.25, lw=0.5)
    rows[-1].set_xlabel("seconds since the run began")
    handles, labels = rows[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False, fontsize=8)
    says = (
        "Steps a second of each load (all ranks take part in each), over the whole run. Shaded: a fault is there; "
        "paler: taken back, replicas catch up. The numbers are those of the table below. "
        f"Blue: fine, yellow: invalid, red: a check failed. One value every {bin_ms:g} ms."
    )
    return Picture("Throughput, and the faults in it", says, svg(figure))


def span_s(result: ChaosResult) -> tuple[float, float]:
    times: list[float] = [at for one in result.timeline.workers for at in (*one.steps_ms[:1], *one.steps_ms[-1:])]
    times += [limit for one in result.faults for limit in (one.start_ms, one.healed_ms)]
    return (math.floor(min(times) / 1000), math.ceil(max(times) / 1000)) if times else (0, 1)


def throughput(workers: Iterable[WorkerTimeline], bin_ms: int) -> dict[str, list[tuple[float, float]]]:
    """Load -> (seconds, steps a second), ascending, with zeros within a stage: all ranks' steps over their number."""
    found: dict[str, dict[int, float]] = {}
    ranks: dict[tuple[str, str], set[int]] = {}
    for one in workers:
        ranks.setdefault((one.stage, one.load), set()).add(one.rank)
    ends: dict[tuple[str, str], tuple[int, int]] = {}
    for one in workers:
        if not one.steps_ms:
            continue
        key = (one.stage, one.load)
        bins = found.setdefault(one.load, {})
        first, last = one.steps_ms[0] // bin_ms, one.steps_ms[-1] // bin_ms
        low, high = ends.get(key, (first, last))
        ends[key] = (min(low, first), max(high, last))
        share = 1000 / bin_ms / len(ranks[key])
        for at in one.steps_ms:
            bins[at // bin_ms] = bins.get(at // bin_ms, 0.0) + share
    for (_, load), (low, high) in ends.items():
        for at in range(low, high + 2):
            found[load].setdefault(at, 0.0)
    return {load: [(at * bin_ms / 1000, rate) for at, rate in sorted(bins.items())] for load, bins in found.items()}


def _faults(axes: Any, faults: Sequence[tuple[int, FaultResult]], low: float, high: float) -> None:
    inside = [(at, one) for at, one in faults if one.start_ms / 1000 < high and one.healed_ms / 1000 >= low]
    begun = [(at, one) for at, one in inside if low <= one.start_ms / 1000 < high]
    for at, one in inside:
        colour = colour_of(one)
        axes.axvspan(one.start_ms / 1000, one.end_ms / 1000, color=colour, alpha=0.28, lw=0)
        axes.axvspan(one.end_ms / 1000, one.healed_ms / 1000, color=colour, alpha=0.09, lw=0)
        if (at, one) in begun:
            axes.axvline(one.start_ms / 1000, color=colour, lw=0.8)
    for turn, (at, one) in enumerate(begun):
        name = f"{at} {one.kind}" if len(begun) <= NAMED_MAX else str(at)
        # Neighbours stand on two lines, so that their names do not run into each other.
        height = 1.01 if turn % 2 == 0 or len(begun) <= 4 else 1.11
        axes.text(
            one.start_ms / 1000, height, name, transform=axes.get_xaxis_transform(), fontsize=7, color=colour_of(one),
            ha="left", va="bottom", clip_on=False,
        )  # fmt: skip


# --- stalls


def stalls(result: ChaosResult) -> Picture:
    kinds: dict[str, list[FaultResult]] = {}
    for one in result.faults:
        if one.stall_ms is not None:
            kinds.setdefault(one.kind, []).append(one)
    ordered = sorted(kinds, key=lambda kind: _middle([_shown(one) for one in kinds[kind] if one.valid] or [math.inf]))
    figure = Figure(figsize=(WIDTH, 0.34 * len(ordered) + 1.3), layout="constrained")
    axes = figure.subplots()
    for row, kind in enumerate(reversed(ordered)):
        valid = [_shown(one) for one in kinds[kind] if one.valid]
        if len(valid) >= 5:
            axes.boxplot(
                valid, positions=[row], orientation="horizontal", widths=0.6, showfliers=False, manage_ticks=False,
                whis=(0, 100), medianprops={"color": "#1d2430", "lw": 1.5}, boxprops={"color": "#9aa5b1"},
                whiskerprops={"color": "#9aa5b1"}, capprops={"color": "#9aa5b1"},
            )  # fmt: skip
        elif valid:
            axes.plot([_middle(valid)] * 2, [row - 0.3, row + 0.3], color="#1d2430", lw=1.5)
        for turn, one in enumerate(kinds[kind]):
            spread = ((turn * 7) % 11 / 10 - 0.5) * 0.36  # the same for the same result
            axes.plot(_shown(one), row + spread, "o", color=colour_of(one), ms=6, alpha=0.7, mew=0)
    for what in (FINE, INVALID, "failed"):
        some = [one for one in result.faults if colour_of(one) == COLOURS[what]]
        if some:
            said = what if what != "failed" else "failed: " + "; ".join(sorted({outcome(one) for one in some}))
            axes.plot([], [], "o", color=COLOURS[what], ms=6, mew=0, label=said)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_yticks(range(len(ordered)), [f"{kind} ({len(kinds[kind])})" for kind in reversed(ordered)])
    axes.set(xlim=(STALL_MS_MIN * 0.9, None), ylim=(-0.7, len(ordered) - 0.3), xlabel="stall, ms")
    axes.grid(axis="x", alpha=0.3, lw=0.5)
    figure.legend(loc="outside upper right", ncols=3, fontsize=8, frameon=False)
    says = (
        "The longest time between two completed steps of a worker around a fault, less the run's median step, until "
        "the fault was taken back. A dot a fault; boxes: quartiles and the median, whiskers to the least and the most. "
        f"Stalls below {STALL_MS_MIN:g} ms are drawn there."
    )
    return Picture("How long training stood still", says, svg(figure))


def _shown(fault: FaultResult) -> float:
    return max(STALL_MS_MIN, fault.stall_ms or 0.0)


def _middle(values: Sequence[float]) -> float:
    from statistics import median

    return median(values)


def svg(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()
