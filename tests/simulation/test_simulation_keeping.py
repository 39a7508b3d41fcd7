"""A model that is saved, loaded and deleted while it trains, on simulated clusters under faults (RULES M1, R4).

Somebody saves it, loads what was saved over it or under its free name, deletes it, and dies in the middle of each;
leaders go, nodes lose power, groups are cut off. Every rank sees, in every generation, the bits of a plain numpy run
that goes on from the file, with the learning rates that were in it; nobody is ever served a version of another
generation; and at the end no replica holds anything of a model that was deleted, nor of a load that nobody finished.
"""

from collections import Counter

import pytest

from paramserver.lab.simulation.system import run_keeping_seed

MET = ("model loaded", "model deleted", "load given up", "changer killed", "rank killed", "rank: opened again")


@pytest.mark.timeout(120)
def test_a_generation_has_the_bits_of_its_file_and_of_no_other() -> None:
    counts: Counter[str] = Counter()
    for seed in (2, 4):
        report = run_keeping_seed(seed)
        report.raise_if_failed()
        counts.update(report.counts)
    assert not [what for what in MET if not counts[what]], counts
