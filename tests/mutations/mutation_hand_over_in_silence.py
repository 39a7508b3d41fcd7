"""A core's outlook leaves out that leadership is being handed over: an owner whom nobody asked for the hand-over hears
neither of it nor of its end."""

import pytest

from consensus.core.raft import RaftCore

NAME = "hand_over_in_silence"
HAZARD = "16: the disk stalls while heartbeats go on; the hand-over fails, and the group stands still for ever"
CAUGHT_BY = [
    "tests/unit/core/test_core_transfer.py::test_the_outlook_shows_a_hand_over_and_its_end",
    "tests/unit/runtime/test_runtime_members.py::test_the_owner_hears_of_a_hand_over_that_a_stalled_disk_began",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    outlook = RaftCore.outlook
    monkeypatch.setattr(RaftCore, "outlook", lambda self: outlook(self)[:-1])
