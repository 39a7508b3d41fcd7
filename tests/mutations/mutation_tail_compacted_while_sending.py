"""The log above a snapshot is released while that snapshot is on its way to a peer."""

import pytest

from consensus.runtime.sending import SnapshotSending

NAME = "tail_compacted_while_sending"
HAZARD = "25: the log tail is compacted while a transfer runs"
CAUGHT_BY = [
    (
        "tests/unit/runtime/test_runtime_snapshots.py"
        "::test_the_log_a_receiver_will_need_is_kept_while_it_is_sent_a_snapshot"
    ),
    "tests/unit/runtime/test_snapshot_transfer.py::test_the_log_and_the_file_are_kept_for_a_peer_that_may_go_on",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SnapshotSending, "kept_for", lambda self: None)
