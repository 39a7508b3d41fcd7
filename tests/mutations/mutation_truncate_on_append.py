from collections.abc import Sequence

import pytest

from consensus.core.interface import Entry
from consensus.core.raft.log import Log

NAME = "truncate_on_append"
HAZARD = "2: a follower truncates on every append instead of at a real conflict"
CAUGHT_BY = [
    "tests/unit/core/test_core_following.py::test_short_duplicate_deletes_nothing_acknowledged",
    "tests/paper/test_paper_raft.py::test_5_3_only_a_conflict_deletes[after2-sent2-left2]",
]


def always_the_first(self: Log, entries: Sequence[Entry]) -> int:
    return 0


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Log, "_first_new", always_the_first)
