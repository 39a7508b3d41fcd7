"""A leader just elected takes every voter for alive, although nobody but its quorum has answered it."""

import pytest

from consensus.core.raft.reconfiguration import Reconfiguration

NAME = "fresh_leader_counts_the_dead"
HAZARD = "18: a new leader changes members before it knows how the group is"
CAUGHT_BY = [
    "tests/unit/core/test_core_membership.py::test_a_new_leader_does_not_take_for_alive_who_never_answered_it",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reconfiguration, "_reachable", lambda self: {*self._replication.progress, self._state.me})
