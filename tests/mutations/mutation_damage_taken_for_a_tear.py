"""Whatever does not verify is taken for the log's torn end, and cut off with all that follows it."""

from typing import Any

import pytest

from consensus.storage import recovery
from consensus.storage.batches import Evidence

NAME = "damage_taken_for_a_tear"
HAZARD = "23: damage in the middle of the log is truncated away as if it were a torn tail"
CAUGHT_BY = ["tests/storage/test_damage.py::test_a_flip_below_a_durable_batch_is_always_noticed"]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "gather_evidence", nothing_was_durable)


def nothing_was_durable(*_: Any) -> Evidence:
    return Evidence()
