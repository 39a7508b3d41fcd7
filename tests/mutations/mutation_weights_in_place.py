"""The next version is computed into the buffer that holds this one."""

import pytest

from paramserver.shard.state import Published, Shard
from paramserver.wire.layout import Flat

NAME = "weights_in_place"
HAZARD = "37: weights overwritten in place"
CAUGHT_BY = [
    "tests/unit/shard/test_shard_machine.py::test_the_version_before_stays_as_it_was",
]


def same_buffer(self: Shard, block: Published) -> Flat:
    assert block.weights is not None
    block.weights.flags.writeable = True
    return block.weights


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shard, "_fresh", same_buffer)
