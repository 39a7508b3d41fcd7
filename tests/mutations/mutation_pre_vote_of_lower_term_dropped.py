import pytest

from consensus.core.interface import VoteRequest
from consensus.core.raft.election import Election

NAME = "pre_vote_of_lower_term_dropped"
HAZARD = "11: a pre-vote with a lower term is dropped instead of answered"
CAUGHT_BY = [
    "tests/unit/core/test_core_election.py::test_pre_vote_of_a_lower_term_is_answered_with_the_own_term",
    "tests/unit/core/test_core_election.py::test_higher_term_and_longer_log_on_different_replicas_still_elect",
]

answer = Election.asked_pre_vote


def drop_lower(self: Election, request: VoteRequest) -> None:
    if request.term >= self._state.term:
        answer(self, request)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Election, "asked_pre_vote", drop_lower)
