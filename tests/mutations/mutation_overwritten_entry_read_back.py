"""Reading back finds an entry by its index alone, whatever term stands there now."""

import pytest

from consensus.storage.live import LiveLog

NAME = "overwritten_entry_read_back"
HAZARD = "5: a read that began before an entry was overwritten is answered from what took its place"
CAUGHT_BY = [
    "tests/storage/test_log_reading.py::test_what_was_superseded_released_or_covered_is_not_there",
]


def place(log: LiveLog, index: int, term: int) -> tuple[int, int] | None:
    for run in log.runs:
        if run.first <= index <= run.last:
            return run.segment, log.offsets[index - log.runs[0].first]
    return None


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LiveLog, "place", place)
