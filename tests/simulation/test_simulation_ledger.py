"""Ledgers on a simulated cluster: nodes crash, links fail, and what was acknowledged stays.

Each test runs a slice of seeds. A failing one prints the seed, what was broken, the planned faults and the last
lines of the trace; `run_seed(seed)` brings it back.
"""

from collections import Counter

import pytest

from consensus.simulation.run import run_seed

SLICE = 12


@pytest.mark.parametrize("first", range(0, 60, SLICE))
def test_seeds(first: int) -> None:
    for seed in range(first, first + SLICE):
        run_seed(seed).raise_if_failed()


def test_a_slice_meets_what_it_is_for() -> None:
    """A run that met no fault, or did nothing, proves nothing."""
    counts: Counter[str] = Counter()
    acknowledged = terms = 0
    for seed in range(100, 112):
        report = run_seed(seed)
        report.raise_if_failed()
        counts.update(report.counts)
        acknowledged += report.acknowledged
        terms += report.terms
    assert acknowledged > 500
    assert terms > 30
    for what in (
        "kill",
        "power cut",
        "power cut during io",
        "pause",
        "cut",
        "failing sync",
        "snapshots written",
        "snapshots sent",
        "restored from snapshots",
        "entries recovered",
        "client: no answer",
        "client: Refused",
        "client: Unknown",
    ):
        assert counts[what], (what, counts)
