"""The leader goes on confirming reads while it hands over."""

import pytest

from consensus.core.raft.transfer import Transfer

NAME = "transferring_leader_confirms_reads"
HAZARD = "14: reads answered by the old leader while leadership is being transferred"
CAUGHT_BY = [
    "tests/unit/core/test_core_reads.py::test_reads_are_refused_while_leadership_is_handed_over",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Transfer, "gates_reads", lambda self: False)
