"""The optimizer's arrays of a pinned version are overwritten by the next update."""

import pytest

from paramserver.shard.state import Shard

NAME = "pinned_slots_in_place"
HAZARD = "37: in the form of a pin: weights of one version, the optimizer's state of another (R4)"
CAUGHT_BY = [
    "tests/unit/shard/test_shard_pins.py::test_the_pinned_version_is_kept_with_all_that_the_optimizer_holds",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shard, "_slots_out", lambda self, index, private: private.slots)
