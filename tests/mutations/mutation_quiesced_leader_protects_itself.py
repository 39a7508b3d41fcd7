"""A leader that slept is as sure of itself as before."""

import pytest

from consensus.core.raft.quiescence import Quiescence

NAME = "quiesced_leader_protects_itself"
HAZARD = "17: a quiesced leader, whose clock stood still, refuses votes"
CAUGHT_BY = [
    "tests/unit/core/test_core_quiescence.py::test_quiesced_leader_gives_way_to_a_candidate",
    "tests/unit/core/test_core_quiescence.py::test_quiesced_leader_asked_for_a_vote_protects_itself_only_once_confirmed",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Quiescence, "sure", lambda self: True)
