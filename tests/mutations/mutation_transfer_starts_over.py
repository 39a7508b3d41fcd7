"""A receiver forgets what it holds when its process restarts."""

import pytest

from consensus.storage.interface import File
from consensus.storage.snapshots import SnapshotFile

NAME = "transfer_starts_over"
HAZARD = "25: the sender starts over for ever instead of resuming by (snapshot id, offset)"
CAUGHT_BY = [
    "tests/unit/runtime/test_snapshot_transfer.py::test_a_receiver_that_was_killed_goes_on_with_what_it_holds",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(self: SnapshotFile, file: File) -> None:
        return None

    monkeypatch.setattr(SnapshotFile, "_take_over", forget)
