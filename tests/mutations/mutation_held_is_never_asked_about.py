"""A peer said that it holds a whole snapshot, and ended before it was installed; nobody asks what became of it."""

import pytest

from consensus.runtime.sending import SnapshotSending

NAME = "held_is_never_asked_about"
HAZARD = "25: the sender waits for an installation by a receiver that restarted, and resumes only to wait again"
CAUGHT_BY = [
    (
        "tests/unit/runtime/test_snapshot_transfer.py"
        "::test_a_receiver_that_was_killed_before_it_installed_what_it_holds_is_sent_it_again"
    ),
    "tests/unit/runtime/test_snapshot_transfer.py::test_a_receiver_whose_restart_closed_no_connection_yet_too",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SnapshotSending, "_ask", lambda self, transfer: None)
