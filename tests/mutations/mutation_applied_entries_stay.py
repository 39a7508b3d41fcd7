"""Payload of entries that are applied stays in memory until a snapshot covers them."""

import pytest

from consensus.core.raft.log import Log

NAME = "applied_entries_stay"
HAZARD = "27: the log in memory grows to several times the state"
CAUGHT_BY = [
    "tests/unit/core/test_core_unloading.py::test_a_leader_keeps_what_a_member_that_answers_lacks_up_to_the_bound",
    "tests/unit/core/test_core_unloading.py::test_a_follower_leaves_what_it_applied_and_nothing_else",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Log, "unload", lambda self, up_to: None)
