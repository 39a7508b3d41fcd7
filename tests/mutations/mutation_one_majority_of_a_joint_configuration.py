import pytest

from consensus.core import quorum
from consensus.core.interface import Configuration, ReplicaId

NAME = "one_majority_of_a_joint_configuration"
HAZARD = "10: quorum arithmetic that commits without a quorum"
CAUGHT_BY = [
    "tests/unit/core/test_core_quorum.py::test_a_joint_quorum_is_a_majority_of_both",
    "tests/unit/core/test_core_quorum.py::test_committed_index_is_the_highest_that_a_quorum_holds",
    "tests/unit/core/test_core_quorum.py::test_election_outcome_is_what_counting_says_for_both",
]


def new_voters_only(configuration: Configuration) -> tuple[tuple[ReplicaId, ...], ...]:
    return (configuration.voters,)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quorum, "electorates", new_voters_only)
