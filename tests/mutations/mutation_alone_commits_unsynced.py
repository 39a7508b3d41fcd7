"""A group of one voter commits what its log has not synced yet: there is nobody to wait for."""

from collections.abc import Mapping

import pytest

from consensus.core.interface import Configuration, ReplicaId
from consensus.core.raft.commit import Commit

NAME = "alone_commits_unsynced"
HAZARD = "8: a one-node cluster acknowledges before the log is synced"
CAUGHT_BY = [
    "tests/unit/core/test_core_election.py::test_single_voter_elects_itself_and_commits_only_what_is_durable",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    count = Commit.count

    def count_all_when_alone(
        self: Commit, configuration: Configuration, matches: Mapping[ReplicaId, int], *, leader_term: int
    ) -> bool:
        if len(configuration.voters) == 1:
            matches = {configuration.voters[0]: self._log.last_index}
        return count(self, configuration, matches, leader_term=leader_term)

    monkeypatch.setattr(Commit, "count", count_all_when_alone)
