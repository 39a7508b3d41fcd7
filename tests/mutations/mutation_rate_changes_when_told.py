"""A data group uses a new learning rate from when it hears of it, and not from its step: blocks change at different
ones."""

import pytest

from paramserver.shard.steps import Steps

NAME = "rate_changes_when_told"
HAZARD = "37: in the form of half a model of one step and half of the next: the learning rate of blocks (S11)"
CAUGHT_BY = [
    "tests/unit/shard/test_shard_rates.py::test_the_rate_changes_at_its_step_and_not_when_it_is_told",
    "tests/simulation/test_simulation_changing.py::test_the_rate_changes_in_all_blocks_at_one_step",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Steps, "rate_at", lambda self, step: self.rates[-1].learning_rate if self.rates else None)
