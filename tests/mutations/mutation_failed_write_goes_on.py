"""A write to the log fails and the process goes on, so that the next entry takes the lost one's place."""

from collections.abc import Callable

import pytest

from consensus.storage.wal import Wal

NAME = "failed_write_goes_on"
HAZARD = "6: the leader's own append fails and its index is used again in the same term"
CAUGHT_BY = ["tests/storage/test_crash_points.py::test_io_error_at_every_call"]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    do_io = Wal._io

    def forgive_writes(self: Wal, what: str, call: Callable[[], None]) -> None:
        if what != "writing the log":
            do_io(self, what, call)
            return
        try:
            call()
        except OSError:
            return

    monkeypatch.setattr(Wal, "_io", forgive_writes)
