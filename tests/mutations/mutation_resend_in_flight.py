"""The leader resends from `acknowledged + 1` while later batches are still in flight."""

import pytest

from consensus.core.raft.progress import Progress

NAME = "resend_in_flight"
HAZARD = "3: the leader resends from acked + 1 while later batches are in flight"
CAUGHT_BY = [
    "tests/unit/core/test_core_replication.py::test_nothing_in_flight_is_sent_again_when_its_beginning_is_acknowledged",
    "tests/unit/core/test_core_replication.py::test_silence_is_answered_by_a_question_behind_everything_sent",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    matched = Progress.matched

    def matched_and_begin_again(self: Progress, index: int, *, probed: bool) -> bool:
        moved = matched(self, index, probed=probed)
        if moved and self.window:
            self.window.clear()
            self.window_bytes = 0
            self.next_index = self.match_index + 1
        return moved

    monkeypatch.setattr(Progress, "matched", matched_and_begin_again)
