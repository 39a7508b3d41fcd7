"""The leader lets a rank jump over blocks that others wait for."""

import pytest

from paramserver.shard.gathering import Gathering

NAME = "any_block_order"
HAZARD = "36: each rank sends blocks in its own order into a bounded window"
CAUGHT_BY = [
    "tests/unit/shard/test_shard_leader.py::test_a_rank_with_an_order_of_its_own_is_told_so_instead_of_blocking_all",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gathering, "_first_skipped", lambda self, stream, step, index: None)
