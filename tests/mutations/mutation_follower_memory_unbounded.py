"""A follower takes all that comes."""

import pytest

from consensus.core.raft.following import Following

NAME = "follower_memory_unbounded"
HAZARD = "27: the memory of a follower whose disk is stuck grows without bound"
CAUGHT_BY = [
    "tests/unit/core/test_core_bounds.py::test_follower_with_a_stuck_disk_drops_what_crosses_its_bound",
    "tests/unit/core/test_core_bounds.py::test_leader_brings_a_follower_back_when_its_disk_moves_again",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Following, "_full", lambda self, request: False)
