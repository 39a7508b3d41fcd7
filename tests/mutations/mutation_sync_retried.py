"""A failed sync is tried again until it "succeeds", after the kernel dropped the pages."""

import pytest

from consensus.storage.wal import Wal

NAME = "sync_retried"
HAZARD = "22: a failed fsync retried until it succeeds"
CAUGHT_BY = ["tests/storage/test_crash_points.py::test_a_failed_sync_is_the_end"]


def _datasync(self: Wal) -> None:
    file = self._usable().prepared.file
    for attempt in range(3):
        try:
            file.datasync()
            break
        except OSError:
            if attempt == 2:
                raise


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Wal, "_datasync", _datasync)
