"""A model that changes, and is saved, while it trains, on simulated clusters under faults (RULES S11, R4).

Somebody changes the learning rate again and again, and dies in the middle of it; leaders go, groups are cut off. Every
rank sees, and every replica ends with, the bits of a plain numpy run in which the same changes come at the steps that
were promised; and what was saved is one version of all blocks, weights and optimizer, bit by bit. Who died while a
version was kept for it leaves nothing behind.
"""

from collections import Counter

import pytest

from paramserver.lab.simulation.system import run_changing_seed

MET = ("rate changed", "changer killed", "rank killed", "model saved", "pins")


@pytest.mark.timeout(200)
def test_the_rate_changes_in_all_blocks_at_one_step() -> None:
    counts: Counter[str] = Counter()
    for seed in (1, 4, 8, 10, 14, 17):
        report = run_changing_seed(seed)
        report.raise_if_failed()
        counts.update(report.counts)
    assert counts["rate changed"] > 5
    assert counts["pins"] > counts["model saved"], "nobody died while a version was kept"
    assert not [what for what in MET if not counts[what]], counts
