"""A leader whose disk stands still, or whose state is in doubt, steps down although nobody who is left can win."""

import pytest

from consensus.core.raft.transfer import Transfer

NAME = "stalled_leader_leaves_nobody"
HAZARD = "16: a disk stalls, and the group is left without anybody who could lead"
CAUGHT_BY = [
    "tests/unit/core/test_core_transfer.py::test_stalled_leader_that_those_who_are_left_need_keeps_trying",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Transfer, "_needed", lambda self: False)
