"""The index of a snapshot is noted when it is asked for, the state is taken later, on its lane."""

import pytest

from consensus.runtime.machine import MachineHost
from consensus.runtime.snapshots import SnapshotWriting

NAME = "snapshot_index_apart"
HAZARD = "9: the applied index stored apart from the state it describes"
CAUGHT_BY = [
    "tests/unit/runtime/test_runtime_snapshots.py::test_the_index_of_a_snapshot_is_that_of_the_state_it_describes"
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    noted: dict[int, tuple[int, int]] = {}
    real_begin = SnapshotWriting._begin
    real_position = MachineHost.position

    def begin(self: SnapshotWriting) -> bool:
        status = self._core.status()
        noted[id(self._machine)] = (status.applied_index, status.term)
        return real_begin(self)

    def position(self: MachineHost) -> tuple[int, int]:
        return noted.get(id(self), real_position(self))

    monkeypatch.setattr(SnapshotWriting, "_begin", begin)
    monkeypatch.setattr(MachineHost, "position", position)
