"""The log is released when the snapshot's file is there, before its record is durable."""

import pytest

from consensus.core.interface import SnapshotMeta
from consensus.runtime.snapshots import SnapshotWriting

NAME = "log_released_before_record"
HAZARD = "24: snapshot saved and log released in the wrong order"
CAUGHT_BY = [
    (
        "tests/unit/runtime/test_runtime_snapshots.py"
        "::test_the_file_is_durable_before_its_record_and_its_record_before_the_log_is_released"
    )
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = SnapshotWriting.record

    def record(self: SnapshotWriting, meta: SnapshotMeta, done):  # type: ignore[no-untyped-def]
        self._services.writer.release(self._group, meta.index + 1)
        real(self, meta, done)

    monkeypatch.setattr(SnapshotWriting, "record", record)
