import pytest

from consensus.core.interface import Configuration
from consensus.core.raft import reconfiguration

NAME = "voters_change_in_one_step"
HAZARD = "18: several voters change without a joint configuration between, so that two majorities can decide apart"
CAUGHT_BY = [
    "tests/paper/test_paper_membership.py::test_dissertation_4_3_two_majorities_never_decide_apart",
    "tests/unit/core/test_core_membership.py::test_a_change_of_voters_passes_through_a_joint_configuration",
    "tests/unit/core/test_core_churn.py::test_members_that_come_and_go_break_no_promise",
]


def straight_to(current: Configuration, target: Configuration) -> Configuration:
    return target


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconfiguration, "first_step", straight_to)
