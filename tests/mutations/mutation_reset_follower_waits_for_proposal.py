"""A follower's sign of life does not make a leader look at what it needs."""

import pytest

from consensus.core.interface import HeartbeatResponse
from consensus.core.raft.replication import Replication

NAME = "reset_follower_waits_for_proposal"
HAZARD = "26: a leader with a purged log and a reset follower sends nothing until the next proposal"
CAUGHT_BY = [
    (
        "tests/unit/runtime/test_snapshot_transfer.py"
        "::test_a_leader_whose_log_is_purged_reaches_a_reset_follower_without_a_proposal"
    )
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    real_answer, real_restarted = Replication.heartbeat_answer, Replication.restarted

    def answer(self: Replication, message: HeartbeatResponse) -> None:
        due = self._due
        real_answer(self, message)
        self._due = due

    def restarted(self: Replication, replica: int) -> None:
        due = self._due
        real_restarted(self, replica)
        self._due = due

    monkeypatch.setattr(Replication, "heartbeat_answer", answer)
    monkeypatch.setattr(Replication, "restarted", restarted)
    monkeypatch.setattr(Replication, "connected", lambda self, replica: None)
