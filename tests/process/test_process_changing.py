"""A model changes while it trains, on real processes: the bits are those of plain numpy with the same changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import paramserver
from paramserver.lab.cluster import Cluster
from paramserver.wire.spec import float32

ELEMENTS, STEPS, KILL_AT = 20_000, 10, 5


def gradient(step: int, weights: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(step).standard_normal(ELEMENTS, dtype=np.float32)
    return weights * np.float32(0.5) + noise


@pytest.mark.timeout(120)
def test_the_rate_changes_at_its_step_though_a_leader_is_killed(tmp_path: Path) -> None:
    """Changes that lie ahead, one for a step that is past, and one asked for at once, right after a leader was killed:
    the step that it returns is the step at which it comes."""
    initial = np.random.default_rng(7).standard_normal(ELEMENTS, dtype=np.float32)
    kept, rates = initial, {0: float32(0.5)}
    with Cluster(3, folder=tmp_path) as cluster:
        cluster.await_leaders(range(4))
        with paramserver.connect(list(cluster.addresses.values())) as client:
            model = client.model(
                "m",
                {"w": (ELEMENTS,)},
                optimizer=paramserver.sgd(0.5),
                rank=0,
                initial={"w": initial},
                block_bytes=16384,
            )
            for step, rate in ((8, 0.01), (3, 0.1)):
                assert model.set_learning_rate(rate, from_step=step) == step
                rates[step] = float32(rate)
            weights = model.pull()
            for step in range(STEPS):
                assert weights.flat.tobytes() == kept.tobytes(), f"weights of step {step}"
                made = gradient(step, weights["w"])
                future = model.push_pull({"w": made})
                if step == KILL_AT:
                    with pytest.raises(paramserver.errors.FailedPrecondition, match="the earliest there can be"):
                        model.set_learning_rate(0.3, from_step=1)
                    cluster.kill(cluster.leader_of(1))
                    now = model.set_learning_rate(0.05)
                    assert KILL_AT <= now <= KILL_AT + 2
                    rates[now] = float32(0.05)
                weights = future.result()
                rate = np.float32(rates[max(at for at in rates if at <= step)])
                kept = kept - rate * made
            assert weights.flat.tobytes() == kept.tobytes()
