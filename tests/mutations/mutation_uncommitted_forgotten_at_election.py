"""A new leader begins to count at zero."""

import pytest

from consensus.core.raft.log import Log

NAME = "uncommitted_forgotten_at_election"
HAZARD = "27: the uncommitted log grows without bound across term changes"
CAUGHT_BY = [
    "tests/unit/core/test_core_bounds.py::test_uncommitted_entries_of_earlier_leaders_count",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Log, "bytes_above", lambda self, index: 0)
