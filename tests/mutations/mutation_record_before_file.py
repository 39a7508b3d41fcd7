"""The snapshot's record goes into the log while its file is not yet durable."""

import pytest

from consensus.storage.snapshots import SnapshotFile

NAME = "record_before_file"
HAZARD = "24: snapshot saved and its record written in the wrong order"
CAUGHT_BY = [
    (
        "tests/unit/runtime/test_runtime_snapshots.py"
        "::test_the_file_is_durable_before_its_record_and_its_record_before_the_log_is_released"
    )
]


def not_synced(self: SnapshotFile) -> None:
    self._open_file().close()
    self._file = None
    self._filesystem.rename(self._temporary, self._path)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SnapshotFile, "_publish", not_synced)
