"""Apply takes any step: a retried command counts twice."""

import pytest

from paramserver.shard.machine import ShardMachine, Verdict

NAME = "duplicate_not_checked_in_apply"
HAZARD = "34: duplicate suppression only in the leader, not in apply"
CAUGHT_BY = [
    "tests/unit/shard/test_shard_machine.py::test_a_command_that_stands_in_the_log_twice_counts_once",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ShardMachine, "_verdict", lambda self, version, step: Verdict.TAKE)
