"""Groups that sleep are not watched over: a silent node wakes none of them."""

import pytest

from consensus.runtime.heartbeats import Heartbeats

NAME = "silence_wakes_nobody"
HAZARD = "12: a leader that sleeps never notices that it lost its quorum"
CAUGHT_BY = [
    "tests/unit/runtime/test_heartbeats.py::test_a_silent_node_wakes_the_groups_it_concerns",
    "tests/unit/runtime/test_heartbeats.py::test_silence_is_measured_only_while_something_sleeps",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Heartbeats, "_watch", lambda self, pair, elapsed_ms, owed_ms: None)
