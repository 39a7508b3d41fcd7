"""Figures made of times: gaps, stalls, times without an answer, distributions. Pure.

Times are seconds of one clock, ascending; figures are milliseconds.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import median

from paramserver.lab.chaos.result import Distribution

TYPICAL_TIMES = 5
"""A gap of more than so many typical ones, and more than the least below, is a time without an answer."""
WRITES_LEAST_S = 0.1
READS_LEAST_S = 0.25


def gaps(times: Sequence[float]) -> list[tuple[float, float]]:
    return list(pairwise(times))


def typical_s(times: Sequence[float]) -> float:
    """The median gap; 0 without one."""
    lengths = [end - start for start, end in pairwise(times)]
    return median(lengths) if lengths else 0.0


def around(times: Sequence[float], start_s: float, limit_s: float) -> list[float]:
    """Lengths of the gaps that end at `start_s` or later and begin by `limit_s`."""
    first = max(0, bisect_left(times, start_s) - 1)
    found = []
    for begin, end in pairwise(times[first:]):
        if begin > limit_s:
            break
        if end >= start_s:
            found.append(end - begin)
    return found


def stall_ms(
    workers: Sequence[Sequence[float]], start_s: float, limit_s: float, *, until_s: float = math.inf
) -> float | None:
    """RULES F1: the longest time between two consecutive completed steps of a worker around the fault, less that
    worker's median step in the run; the worst worker counts. None when a worker completed no step after the fault.
    `until_s`: what comes later belongs to another fault."""
    worst = 0.0
    for times in workers:
        if not times or times[-1] < start_s:
            return None
        seen = times if times[-1] < until_s else [*times[: bisect_left(times, until_s)], until_s]
        lengths = around(seen, start_s, limit_s)
        if not lengths:
            return None
        worst = max(worst, max(lengths) - typical_s(times))
    return worst * 1000.0 if workers else None


def without_answer_ms(times: Sequence[float], start_s: float, end_s: float, least_s: float) -> float:
    """Of [start, end): how much of it lay in gaps that were too long, beyond what a gap usually takes."""
    typical = typical_s(times)
    bound = max(least_s, TYPICAL_TIMES * typical)
    total = 0.0
    inside = [start_s, *[one for one in times if start_s <= one < end_s], end_s]
    before = times[bisect_left(times, start_s) - 1] if times and times[0] < start_s else start_s
    for number, (begin, end) in enumerate(pairwise(inside)):
        whole = end - (before if number == 0 else begin)
        if whole > bound:
            total += max(0.0, min(end - begin, whole - typical))
    return total * 1000.0


def percentile(values: Sequence[float], share: float) -> float | None:
    """By nearest rank."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def distribution(values: Iterable[float]) -> Distribution:
    some = [round(value, 2) for value in values]
    return Distribution(
        p50=percentile(some, 0.5), p99=percentile(some, 0.99), max=max(some) if some else None, n=len(some)
    )


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the line through the points, by least squares; 0 of fewer than two."""
    from statistics import linear_regression

    if len({x for x, _ in points}) < 2:
        return 0.0
    return linear_regression([x for x, _ in points], [y for _, y in points]).slope
