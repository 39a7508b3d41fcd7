import pytest

from consensus.core.interface import ReplicaId
from consensus.core.raft.reconfiguration import Reconfiguration

NAME = "promoted_before_caught_up"
HAZARD = "21: a replica becomes a voter before it holds what the group needs it for"
CAUGHT_BY = [
    "tests/unit/core/test_core_membership.py::test_a_learner_that_lags_is_promoted_once_it_has_caught_up",
    "tests/unit/core/test_core_membership.py::test_a_silent_learner_is_not_promoted",
    "tests/paper/test_paper_membership.py::test_dissertation_4_2_1_a_new_server_catches_up_before_it_votes",
]


def fit(self: Reconfiguration, learner: ReplicaId) -> str:
    return ""


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reconfiguration, "_lacking", fit)
