"""Initial values are taken at any time."""

import pytest

from paramserver.shard.machine import ShardMachine

NAME = "initial_values_after_open"
HAZARD = "41: second half, a restarted worker resets the model"
CAUGHT_BY = [
    "tests/unit/shard/test_shard_machine.py::test_after_open_no_initial_values_are_taken",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ShardMachine, "_initial_refused", lambda self, shard, index, epoch: None)
