"""A state machine that lags holds up nobody."""

import pytest

from consensus.runtime.group import GroupHandle

NAME = "apply_lag_unbounded"
HAZARD = "27: the log grows without bound behind a slow state machine"
CAUGHT_BY = [
    "tests/unit/runtime/test_node_runtime.py::test_a_state_machine_that_lags_holds_up_who_proposes_and_who_sends",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GroupHandle, "_applies_too_much", lambda self: False)
