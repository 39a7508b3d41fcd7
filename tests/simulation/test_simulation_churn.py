"""Clusters whose members change all the time: nothing breaks, every kind of storm comes, and known bugs in how members
change are found by chance."""

from collections import Counter

import pytest

from consensus.core.interface import Configuration
from consensus.simulation.churn import draw_churn_case
from consensus.simulation.node import GroupSpec
from consensus.simulation.report import Report
from consensus.simulation.roster import Roster
from consensus.simulation.run import run_case
from tests.mutations import catalogue


def run_churn_seed(seed: int) -> Report:
    return run_case(draw_churn_case(seed))


def test_members_change_all_the_time_and_nothing_breaks() -> None:
    faults: Counter[str] = Counter()
    changes = 0
    for seed in range(24):
        report = run_churn_seed(seed)
        report.raise_if_failed()
        faults.update(report.faults)
        changes += report.counts.get("membership changes finished", 0)
    assert changes > 24
    for kind in ("membership change", "cut along majorities", "last copies", "pause", "stalled loop", "kill"):
        assert faults[kind], kind


@pytest.mark.parametrize("seed", [28, 122, 188, 191])
def test_seeds_that_led_the_observer_astray(seed: int) -> None:
    """A home that only a truncated entry told; a configuration of a leader that others had long overruled (twice); a
    replica deleted by a configuration that was not committed yet."""
    run_churn_seed(seed).raise_if_failed()


def test_a_configuration_that_was_overruled_is_nobodys_latest() -> None:
    three = Configuration((1, 2, 3))
    roster = Roster([GroupSpec(1, three, {1: 1, 2: 2, 3: 3})])
    roster.configured(1, 9, 2, Configuration((1, 2)), 4)
    assert roster.latest(1).voters == (1, 2)
    roster.overruled(1, lambda index, term: (index, term) == (9, 2))
    assert roster.latest(1) == three


@pytest.mark.parametrize(
    "name",
    [
        "voters_change_in_one_step",
        "change_before_own_term",
        "configuration_effective_at_apply",
        "leaving_leader_counts_itself",
        "one_majority_of_a_joint_configuration",
        "read_rides_on_an_old_round",
    ],
)
def test_chance_finds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue.find(name).install(monkeypatch)
    assert any(not run_churn_seed(seed).ok for seed in range(24))
