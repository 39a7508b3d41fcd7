"""A leader takes itself for a quorum: it commits, and so acknowledges, what it alone has written, and goes on without
the others."""

from collections.abc import Mapping

import pytest

from consensus.core.interface import Configuration, ReplicaId
from consensus.core.raft import commit
from consensus.core.raft.replication import Replication

NAME = "leader_commits_alone"
HAZARD = "10: quorum arithmetic that commits without a quorum"
CAUGHT_BY = [
    "tests/unit/core/test_core_replication.py::test_late_acknowledgement_of_an_earlier_term_does_not_count",
    "tests/unit/core/test_core_replication.py::test_learners_are_served_but_do_not_count",
]


def furthest(configuration: Configuration, matches: Mapping[ReplicaId, int]) -> int:
    return max(matches[voter] for voter in configuration.voters if voter in matches)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "committed_index", furthest)
    monkeypatch.setattr(Replication, "lost_quorum", lambda self, elapsed_ms: False)
