"""A model changes, and is saved, while it trains, on real processes: the bits are those of plain numpy."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import pytest

import paramserver
from paramserver.cli import entry
from paramserver.lab.cluster import Cluster
from paramserver.wire.spec import float32
from tests.process.small import SMALL
from worker.checkpoint_files import read

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
    with Cluster(3, folder=tmp_path, options=SMALL) as cluster:
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


@pytest.mark.timeout(120)
def test_a_model_is_saved_at_one_step_while_it_trains_though_a_leader_is_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the file holds is what a faultless run had after that many steps: weights and momentum, bit by bit."""
    initial = np.random.default_rng(7).standard_normal(ELEMENTS, dtype=np.float32)
    kept = [(initial, np.zeros(ELEMENTS, np.float32))]
    for step in range(STEPS):
        weights, velocity = kept[-1]
        velocity = velocity * np.float32(0.9) + gradient(step, weights)
        kept.append((weights - velocity * np.float32(0.1), velocity))
    with Cluster(3, folder=tmp_path, options=SMALL) as cluster:
        cluster.await_leaders(range(4))
        servers = ",".join(cluster.addresses.values())
        with paramserver.connect(servers) as client, paramserver.connect(servers) as other:
            model = client.model(
                "m",
                {"w": (ELEMENTS,)},
                optimizer=paramserver.momentum(0.1, 0.9),
                rank=0,
                initial={"w": initial},
                block_bytes=16384,
            )
            saving, pinned = [], Event()
            with ThreadPoolExecutor(1) as threads:
                for step in range(STEPS):
                    if step == 5:
                        # The last one before the version that is asked for: the servers have to know of it now.
                        assert pinned.wait(60)
                    weights = model.pull()
                    future = model.push_pull({"w": gradient(step, weights["w"])})
                    if step == 3:
                        # It lies ahead: training gets there while the save waits for it.
                        path = tmp_path / "ahead.safetensors"
                        asked = threads.submit(other.save, "m", path, step=6, progress=lambda *_: pinned.set())
                        saving = [asked]
                    if step == KILL_AT:
                        cluster.kill(cluster.leader_of(1))
                    future.result()
                saved = saving[0].result()
            assert saved.step == 6
            idle = model.save(tmp_path / "idle.npz")
            assert idle.step == STEPS
            for path, step in (("ahead.safetensors", 6), ("idle.npz", STEPS)):
                found = read(tmp_path / path)
                assert found.step == step
                assert found.weights.tobytes() == kept[step][0].tobytes()
                assert found.slots[0].tobytes() == kept[step][1].tobytes()
            with pytest.raises(paramserver.errors.FailedPrecondition, match="the earliest there can be"):
                model.save(tmp_path / "past.npz", step=2)
            assert not (tmp_path / "past.npz").exists()
        capsys.readouterr()
        assert entry.run(["model", "list", "--servers", servers]) == 0
        assert entry.run(["model", "show", "m", "--servers", servers]) == 0
        assert entry.run(["model", "save", "m", str(tmp_path / "by-hand.npz"), "--servers", servers]) == 0
        assert entry.run(["model", "save", "nobody", str(tmp_path / "x.npz"), "--servers", servers]) == 2
        shown = capsys.readouterr()
        assert "Momentum(learning_rate=0.1, momentum=0.9" in shown.out
        assert f"version {STEPS} of m is in" in shown.out
        assert "no model 'nobody'" in shown.err
        assert (tmp_path / "by-hand.npz").read_bytes()[:2] == b"PK"
        assert read(tmp_path / "by-hand.npz").weights.tobytes() == kept[STEPS][0].tobytes()
