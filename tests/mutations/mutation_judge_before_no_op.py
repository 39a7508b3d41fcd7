"""An elected leader judges at once, by versions that are still old, and does not make sure that it leads before it
blames a rank: random runs find neither without the other."""

import pytest

from paramserver.shard import gathering
from paramserver.shard.leader import ShardLeader

NAME = "judge_before_no_op"
HAZARD = "35: a new leader refuses legal pushes because it has not applied its log yet"
CAUGHT_BY = [
    "tests/unit/shard/test_shard_leader.py::test_a_new_leader_parks_pushes_until_its_no_op_is_applied",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ShardLeader, "_may_judge", lambda self: True)
    monkeypatch.setattr(gathering, "OF_OLD_STATE", frozenset())
