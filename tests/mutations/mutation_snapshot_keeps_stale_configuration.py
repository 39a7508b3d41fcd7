import pytest

from consensus.core.interface import Configuration
from consensus.core.raft.membership import Membership

NAME = "snapshot_keeps_stale_configuration"
HAZARD = "20: a snapshot install leaves a stale uncommitted configuration behind"
CAUGHT_BY = [
    "tests/unit/core/test_core_configurations.py::test_a_snapshot_leaves_no_uncommitted_configuration_behind",
]


def keep_the_last(self: Membership, index: int, configuration: Configuration) -> None:
    last = self._history[-1]
    self._history = [(index, configuration), last]
    self._adopt()


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Membership, "restored", keep_the_last)
