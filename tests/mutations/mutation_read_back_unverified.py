"""What lies where an entry was is taken for it, though the segment is another one by now, or rotted."""

import pytest

from consensus.storage import reading

NAME = "read_back_unverified"
HAZARD = "40: what lies in a recycled segment is taken for the entry that lay there"
CAUGHT_BY = [
    "tests/storage/test_log_reading.py::test_a_segment_may_be_recycled_under_a_reader",
    "tests/storage/test_log_reading.py::test_damage_is_never_handed_out",
]


class Right(int):
    """Equal to every CRC."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = int.__hash__


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "crc32c", lambda payload: Right())
