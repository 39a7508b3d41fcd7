from collections import defaultdict

import pytest

from consensus.core.interface import Entry
from consensus.core.raft.commit import Commit
from consensus.core.raft.membership import Membership

NAME = "configuration_effective_at_apply"
HAZARD = "19: a configuration takes effect when its entry is applied, not when it is appended"
CAUGHT_BY = [
    "tests/unit/core/test_core_configurations.py::test_truncation_brings_the_one_before_back",
    "tests/paper/test_paper_membership.py::test_6_a_server_always_uses_the_latest_configuration_in_its_log",
    "tests/paper/test_paper_membership.py::test_dissertation_4_3_two_majorities_never_decide_apart",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    appended, set_applied = Membership.appended, Commit.set_applied
    waiting: dict[int, list[Entry]] = defaultdict(list)

    def wait(self: Membership, entry: Entry) -> None:
        waiting[id(self)].append(entry)

    def apply(self: Commit, index: int) -> None:
        set_applied(self, index)
        membership = self._log._membership
        due = [entry for entry in waiting[id(membership)] if entry.index <= index]
        waiting[id(membership)] = [entry for entry in waiting[id(membership)] if entry.index > index]
        for entry in due:
            appended(membership, entry)

    monkeypatch.setattr(Membership, "appended", wait)
    monkeypatch.setattr(Commit, "set_applied", apply)
