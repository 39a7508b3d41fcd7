"""A group that was told to delete a model takes a late command to create it, and holds it for ever."""

import pytest

from paramserver.shard.deleted import Deleted

NAME = "deleted_model_comes_back"
HAZARD = "41: second half, what was deleted is brought back by a command sent long before"
CAUGHT_BY = [
    "tests/unit/shard/test_shard_loading.py::test_a_deleted_shard_is_gone_and_does_not_come_back",
    "tests/unit/shard/test_shard_loading.py::test_a_model_that_is_on_its_way_into_the_group_still_comes",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Deleted, "has", lambda _self, _model: False)
