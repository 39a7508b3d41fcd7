"""Old records of a recycled segment still verify."""

import pytest

from consensus.storage import records

NAME = "recycled_records_verify"
HAZARD = "40: recycled log segments whose old records still verify"
CAUGHT_BY = ["tests/storage/test_damage.py::test_records_of_another_place_never_verify"]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "seed", lambda segment, offset: 0)
    monkeypatch.setattr(records, "in_place", lambda data, offset, segment: True)
