from collections.abc import Collection, Mapping

import pytest

from consensus.core import quorum
from consensus.core.interface import Configuration, ReplicaId
from consensus.core.raft import commit

NAME = "leaving_leader_counts_itself"
HAZARD = "10: an index commits without a quorum, for a leader that is no voter any more counts itself"
CAUGHT_BY = [
    "tests/paper/test_paper_membership.py::test_6_a_leader_that_is_not_in_the_new_configuration_does_not_count_itself",
    "tests/unit/core/test_core_membership.py::test_a_leader_that_leaves_does_not_count_itself",
]


def of_all_that_hold(configuration: Configuration, matches: Mapping[ReplicaId, int]) -> int:
    """The right number of holders, whoever they are."""
    held: Collection[int] = sorted(matches.values(), reverse=True)
    return list(held)[quorum.majority(len(configuration.voters)) - 1]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "committed_index", of_all_that_hold)
