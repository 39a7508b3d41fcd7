"""Numbers of forwarded reads begin anew with each life."""

import pytest

from consensus.core.raft import reads

NAME = "read_token_repeats"
HAZARD = "13: read-index tokens repeat in a later life of the reader"
CAUGHT_BY = [
    "tests/unit/core/test_core_reads.py::test_forwarded_numbers_never_come_again_in_a_later_life",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "_INCARNATION_MASK", 0)
