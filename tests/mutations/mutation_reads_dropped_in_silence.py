"""A read that can't be confirmed is forgotten."""

import pytest

from consensus.core.raft.reads import Reads

NAME = "reads_dropped_in_silence"
HAZARD = "28: reads are dropped without an answer"
CAUGHT_BY = [
    "tests/unit/core/test_core_reads.py::test_reads_beyond_the_bound_are_refused_one_by_one",
    "tests/unit/core/test_core_reads.py::test_unconfirmed_reads_are_refused_when_no_quorum_answers",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reads, "_refuse", lambda self, read: None)
