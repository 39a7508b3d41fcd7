"""A push of a model's earlier generation is applied to the one that took its place."""

import pytest

from paramserver.shard.machine import ShardMachine
from paramserver.shard.results import Why
from paramserver.shard.state import Shard

NAME = "old_generation_accepted"
HAZARD = "41: first half, a model created again accepts the old one's late pushes"
CAUGHT_BY = ["tests/unit/shard/test_shard_machine.py::test_updates_that_do_not_fit_are_refused_without_effect"]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = ShardMachine._find

    def find_by_model_alone(self: ShardMachine, model: int, generation: int) -> Shard | Why:
        for known in range(1, 100):
            found = find(self, model, known)
            if not isinstance(found, Why):
                return found
        return find(self, model, generation)

    monkeypatch.setattr(ShardMachine, "_find", find_by_model_alone)
