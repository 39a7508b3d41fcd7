"""A hold binds the leader that heard of it and not apply: what stands in the log behind it is applied all the same."""

import pytest

from paramserver.shard.machine import ShardMachine
from paramserver.shard.results import Why

NAME = "hold_is_advice"
HAZARD = "34: in the form of a hold that is kept only where sums are made (S9, S11)"
CAUGHT_BY = [
    "tests/unit/shard/test_shard_rates.py::test_nothing_of_a_step_is_applied_while_a_hold_stands_and_the_change_ends_it",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    update = ShardMachine._update

    def without_hold(self: ShardMachine, command: object) -> object:
        result = update(self, command)  # type: ignore[arg-type]
        if getattr(result, "why", None) is not Why.HELD:
            return result
        shard = self.shards[command.model]  # type: ignore[attr-defined]
        info = shard.info
        try:
            shard.set_steps(type(info.steps)(None, info.steps.rate_number, info.steps.rates))
            return update(self, command)  # type: ignore[arg-type]
        finally:
            shard.set_steps(info.steps)

    monkeypatch.setattr(ShardMachine, "_update", without_hold)
