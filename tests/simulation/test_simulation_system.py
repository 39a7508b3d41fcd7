"""The whole system from one seed: bootstrap, group 0, services and real clients, under faults."""

import pytest

from paramserver.lab.simulation.system import run_system_seed


@pytest.mark.parametrize("seed", range(8))
def test_the_whole_system_ends_with_the_bits_of_the_reference_run(seed: int) -> None:
    run_system_seed(seed).raise_if_failed()


def test_the_same_seed_gives_the_same_run() -> None:
    assert run_system_seed(3).trace_hash == run_system_seed(3).trace_hash


def test_reads_that_must_be_new_are_answered_and_miss_nothing() -> None:
    report = run_system_seed(4)
    report.raise_if_failed()
    assert report.counts["reads of nothing newer"] > 0
    assert report.counts["linearizable reads"] > 0
    assert report.counts["bounded reads"] > 0
