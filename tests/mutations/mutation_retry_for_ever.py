"""A client's retries have no deadline."""

import pytest

from worker.retry import Budget

NAME = "retry_for_ever"
HAZARD = "32: clients retry for ever"
CAUGHT_BY = [
    "tests/unit/worker/test_worker_routing.py::test_a_budget_counts_down_and_bounds_every_attempt",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Budget, "expired", property(lambda self: False))
    monkeypatch.setattr(Budget, "remaining_s", property(lambda self: self.timeout_s))
