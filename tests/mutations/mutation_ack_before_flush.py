import pytest

from consensus.core.raft.following import Following

NAME = "ack_before_flush"
HAZARD = "4: a follower acknowledges before its own write is durable"
CAUGHT_BY = [
    "tests/unit/core/test_core_following.py::test_entries_are_acknowledged_only_once_durable",
    "tests/unit/core/test_core_following.py::test_duplicate_of_what_is_being_written_is_not_acknowledged",
    "tests/unit/core/test_core_following.py::test_empty_request_behind_what_is_being_written_is_not_acknowledged",
    "tests/unit/core/test_core_following.py::test_heartbeat_answer_speaks_of_the_flushed_cursor",
]


def whatever_was_received(self: Following) -> int:
    return self.verified


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Following, "durable_match", whatever_was_received)
