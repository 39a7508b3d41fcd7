"""A report of the disk counts only after that of the batch before: one that was skipped strands all later ones."""

import pytest

from consensus.core.raft.durability import Durability

NAME = "completions_strand"
HAZARD = "29: completions out of order strand progress"
CAUGHT_BY = [
    "tests/unit/core/test_core_durability.py::test_a_report_speaks_of_all_batches_before_it",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    reported = Durability.reported

    def in_order_only(self: Durability, number: int) -> bool:
        return number == self.durable + 1 and reported(self, number)

    monkeypatch.setattr(Durability, "reported", in_order_only)
