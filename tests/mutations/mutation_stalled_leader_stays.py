"""A leader whose disk stands still goes on leading."""

import pytest

from consensus.core.raft import RaftCore

NAME = "stalled_leader_stays"
HAZARD = "16: the disk stalls while heartbeats go on, and the group freezes behind its leader"
CAUGHT_BY = [
    "tests/unit/core/test_core_transfer.py::test_group_goes_on_without_the_stalled_leaders_disk",
    "tests/unit/core/test_core_transfer.py::test_stalled_leader_steps_down_when_nobody_takes_over",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RaftCore, "_leave_when_stalled", lambda self: None)
