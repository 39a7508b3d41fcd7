"""A leader that nobody answers goes on, so whoever hears it refuses everybody else."""

import pytest

from consensus.core.raft.replication import Replication

NAME = "leader_without_quorum_goes_on"
HAZARD = "12: a leader without a quorum keeps the belief of those it still reaches alive"
CAUGHT_BY = [
    "tests/unit/core/test_core_quiescence.py::test_leader_whom_nobody_answers_stops_renewing",
    "tests/unit/core/test_core_quiescence.py::test_bridge_is_free_of_a_leader_without_a_quorum",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Replication, "lost_quorum", lambda self, elapsed_ms: False)
