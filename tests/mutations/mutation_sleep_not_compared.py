"""Two nodes never compare which of their groups sleep."""

import pytest

from consensus.runtime import heartbeats

NAME = "sleep_not_compared"
HAZARD = "17: a follower wakes and its leader, which sleeps, never learns of it"
CAUGHT_BY = [
    "tests/unit/runtime/test_heartbeats.py::test_a_group_that_is_awake_on_one_side_only_is_found_by_its_hash",
    "tests/unit/runtime/test_heartbeats.py::test_a_difference_is_asked_for_listed_and_named",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats, "hash_of", lambda rows: 0)
    monkeypatch.setattr(heartbeats.Asleep, "but", lambda self, awake: (0, 0))
