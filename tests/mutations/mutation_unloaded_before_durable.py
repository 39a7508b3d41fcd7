"""Payload is left to the log on disk before it is there."""

import pytest

from consensus.core.raft.core import RaftCore

NAME = "unloaded_before_durable"
HAZARD = "5: what was only queued to be written is taken for durable, and its payload is dropped"
CAUGHT_BY = [
    "tests/unit/core/test_core_unloading.py::test_a_leader_keeps_what_is_not_applied",
    "tests/unit/core/test_core_unloading.py::test_a_follower_leaves_what_it_applied_and_nothing_else",
]


def unload(core: RaftCore) -> None:
    log = core._log
    before, log.flushed = log.flushed, log.last_index
    log.unload(log.last_index)
    log.flushed = before


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RaftCore, "_unload", unload)
