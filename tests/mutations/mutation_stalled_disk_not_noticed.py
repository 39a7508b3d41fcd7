"""Nobody looks at how long the disk takes."""

import pytest

from consensus.runtime.progress import WatchedWriter

NAME = "stalled_disk_not_noticed"
HAZARD = "16: the host never tells that its disk stands still"
CAUGHT_BY = [
    "tests/unit/runtime/test_runtime_members.py::test_a_leader_whose_disk_stands_still_hands_over",
    "tests/unit/runtime/test_storage_stall.py::test_a_sync_that_hangs_in_the_thread_reaches_the_core_and_its_end_does_too",
    "tests/simulation/test_simulation_stall.py::test_a_leader_on_a_slow_disk_is_told_hands_over_and_is_told_again",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WatchedWriter, "tick", lambda self, elapsed_ms, *, stall_ms: False)
