"""What confirms a read is the number that its reader chose, not a round of the leader's."""

import pytest

from consensus.core.raft.reads import Reads

NAME = "read_confirmed_by_its_own_number"
HAZARD = "13: reads confirmed by a stale leader because the token came from the client and repeated"
CAUGHT_BY = [
    "tests/unit/core/test_core_reads.py::test_number_that_a_reader_chose_again_gets_no_old_answer",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Reads.round_begins

    def wrong(self: Reads, number: int) -> None:
        right(self, self._waiting[0].token if self._waiting else number)

    monkeypatch.setattr(Reads, "round_begins", wrong)
