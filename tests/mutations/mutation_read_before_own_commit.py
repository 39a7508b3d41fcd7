"""A new leader confirms reads before it has committed anything of its own term."""

import pytest

from consensus.core.interface import Role
from consensus.core.raft.reads import Reads

NAME = "read_before_own_commit"
HAZARD = "14: ReadIndex answered before the first commit of the own term"
CAUGHT_BY = [
    "tests/unit/core/test_core_reads.py::test_read_waits_for_an_entry_of_the_own_term",
    "tests/unit/core/test_core_random_reads.py::test_reads_never_go_back",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reads, "_own_term_committed", lambda self: self._state.role is Role.LEADER)
