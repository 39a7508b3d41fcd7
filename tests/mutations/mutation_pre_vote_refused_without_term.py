import pytest

from consensus.core.interface import VoteRequest
from consensus.core.raft.election import Election

NAME = "pre_vote_refused_without_term"
HAZARD = "11: a refused pre-vote does not carry the refuser's higher term"
CAUGHT_BY = [
    "tests/unit/core/test_core_election.py::test_pre_vote_of_a_lower_term_is_answered_with_the_own_term",
    "tests/unit/core/test_core_election.py::test_higher_term_and_longer_log_on_different_replicas_still_elect",
]


def term_of_the_request(self: Election, request: VoteRequest, *, granted: bool) -> int:
    return request.term


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Election, "_answer_term", term_of_the_request)
