import pytest

from consensus.core.raft.election import Election

NAME = "forgetful_replica_votes"
HAZARD = "23: a replica whose acknowledged entries are gone helps to elect a leader that lacks them (RULES W7)"
CAUGHT_BY = [
    "tests/unit/core/test_core_rejoin.py::test_it_does_not_vote",
    "tests/unit/core/test_core_rejoin.py::test_an_acknowledged_entry_survives_the_loss_of_its_only_other_copy",
    "tests/unit/core/test_core_churn.py::test_members_that_come_and_go_break_no_promise",
]


def as_if_nothing_was_lost(self: Election) -> bool:
    return True


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Election, "_remembers", as_if_nothing_was_lost)
