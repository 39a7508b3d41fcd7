"""Reads and changes of membership that wait when a replica stops are forgotten."""

import pytest

from consensus.runtime.group import GroupHandle

NAME = "requests_forgotten_at_stop"
HAZARD = "28: what waits when a replica stops gets no answer"
CAUGHT_BY = [
    "tests/unit/runtime/test_runtime_members.py::test_a_change_that_waits_gets_an_outcome_when_the_node_stops",
    "tests/unit/runtime/test_runtime_reads.py::test_reads_that_wait_are_bounded_and_answered_when_the_node_stops",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GroupHandle, "_end_requests", lambda self, reason: None)
