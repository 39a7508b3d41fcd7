"""The table at a segment's head leaves out the hard state, so a vote goes with the segment that held its record."""

from dataclasses import replace

import pytest

from consensus.core.interface import HardState
from consensus.storage.live import LiveLog
from consensus.storage.tables import GroupRow

NAME = "vote_lost_with_segment"
HAZARD = "40: votes lost with a recycled segment"
CAUGHT_BY = ["tests/storage/test_wal.py::test_votes_outlive_the_segment_they_were_written_to"]

_row = LiveLog.row


def _without_vote(self: LiveLog) -> GroupRow:
    return replace(_row(self), hard_state=HardState())


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LiveLog, "row", _without_vote)
