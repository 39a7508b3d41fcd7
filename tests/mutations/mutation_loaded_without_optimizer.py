"""A model that was loaded begins with its weights, and with an optimizer that knows nothing."""

import pytest

from paramserver.shard.state import Shard
from paramserver.wire.layout import Flat

NAME = "loaded_without_optimizer"
HAZARD = "37: in the form of a checkpoint: half of a model's state is of its step, half of its first (M1)"
CAUGHT_BY = [
    "tests/unit/shard/test_shard_loading.py::test_training_goes_on_with_the_bits_of_a_run_that_never_stopped",
    "tests/simulation/test_simulation_keeping.py::test_a_generation_has_the_bits_of_its_file_and_of_no_other",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    fill = Shard.fill

    def with_zeros(self: Shard, index: int, part: int, values: Flat, epoch: int) -> bool:
        return fill(self, index, part, values * 0, epoch)

    monkeypatch.setattr(Shard, "fill", with_zeros)
