"""The whole system while replicas move (FAULTS 22 and 30, in whole): every update exactly once and on every replica the
reference run's bits, through moves, drains, replacements and hand-overs, crashes and cuts."""

from collections import Counter

import pytest

from paramserver.lab.simulation.system import run_reshaped_seed

SEEDS = range(6)
granted: Counter[str] = Counter()


@pytest.mark.parametrize("seed", SEEDS)
def test_replicas_that_move_end_with_the_bits_of_the_reference_run(seed: int) -> None:
    report = run_reshaped_seed(seed)
    report.raise_if_failed()
    granted.update({name: count for name, count in report.counts.items() if name.endswith(" granted")})


def test_wishes_were_granted() -> None:
    if not granted:  # run alone
        for seed in SEEDS:
            granted.update(run_reshaped_seed(seed).counts)
    assert granted["wish to move granted"] >= 2
    assert granted["wish to drain granted"] >= 2


def test_the_same_seed_gives_the_same_run() -> None:
    assert run_reshaped_seed(0).trace_hash == run_reshaped_seed(0).trace_hash
