"""The simulator has teeth: known bugs, put back, fail a small slice of seeds.

The tests that each mutation names are closer to the bug; here it only has to be found by chance, as an unknown one
would be.
"""

from collections.abc import Callable

import pytest

from consensus.simulation.report import Report
from consensus.simulation.run import run_seed
from paramserver.lab.simulation import run_seed as train_seed
from tests.mutations import catalogue

SEEDS = 36


def finds(run: Callable[[int], Report]) -> bool:
    return any(not run(seed).ok for seed in range(SEEDS))


@pytest.mark.parametrize(
    "name",
    [
        "ack_before_flush",
        "truncate_on_append",
        "hard_state_not_durable",
        "snapshot_index_apart",
        "vote_lost_with_segment",
        "read_before_own_commit",
    ],
)
def test_ledgers_find(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue.find(name).install(monkeypatch)
    assert finds(run_seed)


@pytest.mark.parametrize("name", ["weights_in_place", "judge_before_no_op"])
def test_training_finds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue.find(name).install(monkeypatch)
    assert finds(train_seed)
