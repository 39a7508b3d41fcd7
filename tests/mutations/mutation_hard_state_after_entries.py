"""Term and vote are written after the entries of that term."""

from collections.abc import Iterator

import pytest

from consensus.storage import wal
from consensus.storage.interface import GroupAppend
from consensus.storage.records import Kind, Record

NAME = "hard_state_after_entries"
HAZARD = "7: term and vote written after the entries of that term"
CAUGHT_BY = ["tests/storage/test_crash_points.py::test_entries_of_a_term_never_precede_its_hard_state"]

_records_of = wal.records_of


def _entries_first(append: GroupAppend) -> Iterator[Record]:
    return iter(sorted(_records_of(append), key=lambda record: record.kind is Kind.HARD_STATE))


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wal, "records_of", _entries_first)
