"""A read is registered with the heartbeat round sent last, whose answers may be from before a pause."""

import pytest

from consensus.core.raft.reads import Reads

NAME = "read_rides_on_an_old_round"
HAZARD = "15: a process paused past the election timeout and resumed answers stale reads"
CAUGHT_BY = [
    "tests/unit/core/test_core_reads.py::test_reads_do_not_ride_on_old_confirmations",
    "tests/unit/core/test_core_random_reads.py::test_reads_never_go_back",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Reads.settle

    def wrong(self: Reads) -> None:
        self.round_begins(self._replication.round)
        right(self)

    monkeypatch.setattr(Reads, "settle", wrong)
