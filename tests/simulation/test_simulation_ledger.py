"""Ledgers on a simulated cluster: nodes crash, links fail, disks rot, and what was acknowledged stays.

A failing seed prints itself, what was broken, the planned faults and the last lines of the trace;
`paramserver sim replay SEED` brings it back.
"""

from collections import Counter

import pytest

from consensus.simulation.plans import WEIGHTS
from consensus.simulation.run import run_seed

MET = (
    "snapshots written",
    "snapshots sent",
    "restored from snapshots",
    "entries recovered",
    "healed some nodes first",
    "client: no answer",
    "client: Refused",
    "client: Unknown",
)


@pytest.mark.timeout(300)
def test_seeds_break_nothing_and_meet_every_fault() -> None:
    """A run that met no fault, or did nothing, proves nothing."""
    counts: Counter[str] = Counter()
    acknowledged = terms = 0
    for seed in range(60):
        report = run_seed(seed)
        report.raise_if_failed()
        counts.update(report.counts)
        counts.update(report.faults)
        acknowledged += report.acknowledged
        terms += report.terms
    assert acknowledged > 5000
    assert terms > 150
    missing = [what for what in (*(kind.value for kind in WEIGHTS), *MET) if not counts[what]]
    assert not missing, counts
    assert not counts["histories undecided"]
