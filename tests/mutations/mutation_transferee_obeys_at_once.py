"""Whoever is told to campaign does."""

import pytest

from consensus.core.raft import core

NAME = "transferee_obeys_at_once"
HAZARD = "21: a transferee campaigns before it has flushed the leader's last entry or knows that it is a voter"
CAUGHT_BY = [
    "tests/unit/core/test_core_transfer.py::test_transferee_that_has_not_flushed_ignores_the_order",
    "tests/unit/core/test_core_transfer.py::test_transferee_that_never_compared_its_log_ignores_the_order",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "may_take_over", lambda state, order, *, durable_match: True)
