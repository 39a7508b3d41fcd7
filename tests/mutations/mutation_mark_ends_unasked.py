"""A replica that lost everything, its term too, takes the answer that nobody gave for one of that term."""

import pytest

from consensus.core.raft.rejoin import Rejoin

NAME = "mark_ends_unasked"
HAZARD = "23: a replica that lost everything counts again before any leader told it what it must hold (RULES W7)"
CAUGHT_BY = ["tests/unit/core/test_core_rejoin.py::test_without_a_leader_it_stays_forgetful_whatever_is_left"]


def due(self: Rejoin) -> bool:
    state = self._state
    if not state.forgetful or self._clearing or self._term != state.term:
        return False
    return self._durability.synced() and self._following.durable_match() >= self._last_index


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rejoin, "due", due)
