import pytest

from consensus.core.raft import reconfiguration

NAME = "change_before_own_term"
HAZARD = "18: a configuration change is appended before the leader committed an entry of its own term"
CAUGHT_BY = [
    "tests/unit/core/test_core_membership.py::test_refused_until_an_entry_of_the_own_term_is_committed",
]


def at_once(*, commit_index: int, noop_index: int) -> bool:
    return True


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconfiguration, "own_term_committed", at_once)
