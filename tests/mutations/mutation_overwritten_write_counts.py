import pytest

from consensus.core.raft.log import Log

NAME = "overwritten_write_counts"
HAZARD = "5: a queued write of an overwritten entry is reported as durable after the entry came back"
CAUGHT_BY = [
    "tests/unit/core/test_core_following.py::test_report_of_an_overwritten_batch_acknowledges_nothing_though_the_entry_came_back",
    "tests/unit/core/test_core_log.py::test_batch_of_overwritten_entries_does_not_count_though_they_come_back",
]


def clip_nothing(self: Log, last_index: int) -> None:
    pass


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Log, "_clip_writing", clip_nothing)
