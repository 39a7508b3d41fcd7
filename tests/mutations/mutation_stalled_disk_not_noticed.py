"""Nobody looks at how long the disk takes."""

import pytest

from consensus.runtime.progress import WatchedWriter

NAME = "stalled_disk_not_noticed"
HAZARD = "16: the host never tells that its disk stands still"
CAUGHT_BY = [
    "tests/unit/runtime/test_runtime_members.py::test_a_leader_whose_disk_stands_still_hands_over",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WatchedWriter, "tick", lambda self, elapsed_ms, *, stall_ms: False)
