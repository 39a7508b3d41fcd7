"""Waiting for the installation ends with the timeout of a chunk, and the sender starts over for ever."""

import pytest

from consensus.runtime.sending import SnapshotSending

NAME = "install_counts_as_chunk"
HAZARD = "25: the acknowledgement times out because installing took longer than the chunk timeout"
CAUGHT_BY = [
    "tests/unit/runtime/test_runtime_snapshots.py::test_a_receiver_that_is_slow_to_install_is_not_sent_everything_again"
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        SnapshotSending, "_patience_ms", lambda self, transfer: self._services.options.transfer_timeout_ms
    )
