import pytest

from consensus.core.raft.membership import Membership

NAME = "configuration_stays_after_truncation"
HAZARD = "19: a configuration is not rolled back when its entry is truncated"
CAUGHT_BY = [
    "tests/unit/core/test_core_configurations.py::test_truncation_brings_the_one_before_back",
    "tests/unit/core/test_core_configurations.py::test_a_new_life_goes_on_with_the_configuration_of_its_log",
]


def not_rolled_back(self: Membership, last_index: int) -> None:
    return None


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Membership, "truncated", not_rolled_back)
