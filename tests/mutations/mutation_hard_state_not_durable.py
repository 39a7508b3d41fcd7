"""Term and vote are kept in memory only, until the next segment's head happens to tell them."""

from collections.abc import Iterator

import pytest

from consensus.storage import wal
from consensus.storage.interface import GroupAppend
from consensus.storage.records import Kind, Record

NAME = "hard_state_not_durable"
HAZARD = "7: term and vote not durable"
CAUGHT_BY = [
    "tests/storage/test_crash_points.py::test_power_cut_at_every_call[hard state]",
    "tests/storage/test_wal.py::test_what_many_groups_wrote_comes_back",
]

_records_of = wal.records_of


def _without_hard_state(append: GroupAppend) -> Iterator[Record]:
    return (record for record in _records_of(append) if record.kind is not Kind.HARD_STATE)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wal, "records_of", _without_hard_state)
