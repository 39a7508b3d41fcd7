"""A saved model is loaded beside the one that trains and over it, and deleted, on real processes: same bits."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest

import paramserver
from paramserver.cli import entry
from paramserver.lab.cluster import Cluster
from paramserver.wire.spec import float32
from tests.process.small import SMALL

ELEMENTS, SAVED_AT, STEPS, SLOWER_FROM = 20_000, 3, 7, 5
SLOWER = 0.01


def gradient(step: int, weights: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(step).standard_normal(ELEMENTS, dtype=np.float32)
    return weights * np.float32(0.5) + noise


def faultless(initial: np.ndarray) -> list[np.ndarray]:
    kept, velocity = [initial], np.zeros(ELEMENTS, np.float32)
    for step in range(STEPS):
        velocity = velocity * np.float32(0.9) + gradient(step, kept[-1])
        kept.append(kept[-1] - velocity * np.float32(float32(SLOWER) if step >= SLOWER_FROM else 0.1))
    return kept


def train(model: paramserver.Model, kept: list[np.ndarray], until: int) -> None:
    while model.step < until:
        weights = model.pull()
        assert weights.flat.tobytes() == kept[model.step].tobytes(), f"weights of step {model.step}"
        model.push_pull({"w": gradient(model.step, weights["w"])}).result()


@pytest.mark.timeout(120)
def test_a_checkpoint_goes_on_with_the_same_bits_wherever_it_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its file holds a learning rate that will change, and momentum. A leader is killed while it is loaded over the
    model that it was saved of, which trained on meanwhile."""
    initial = np.random.default_rng(7).standard_normal(ELEMENTS, dtype=np.float32)
    kept, path = faultless(initial), tmp_path / "m.npz"
    with Cluster(3, folder=tmp_path, options=SMALL) as cluster:
        cluster.await_leaders(range(4))
        servers = ",".join(cluster.addresses.values())

        def run(*words: str) -> tuple[int, str]:
            code = entry.run(["model", *words, "--servers", servers])
            return code, "".join(capsys.readouterr())

        with paramserver.connect(servers, timeout=30) as client:
            spec = paramserver.Spec(
                {"w": (ELEMENTS,)}, optimizer=paramserver.momentum(0.1, 0.9), ranks=1, block_bytes=16384
            )
            model = client.model("m", spec, rank=0, initial={"w": initial})
            assert model.set_learning_rate(SLOWER, from_step=SLOWER_FROM) == SLOWER_FROM
            train(model, kept, SAVED_AT)
            assert model.save(path).step == SAVED_AT
            train(model, kept, STEPS)

            assert run("load", str(path), "--name", "n") == (
                0,
                f"generation 1 of n is open at version {SAVED_AT}, id 2\n",
            )
            killed: list[int] = []

            def progress(done: int, total: int) -> None:
                if not killed:
                    killed.append(cluster.leader_of(1) or 1)
                    cluster.kill(killed[0])

            loaded = client.load(path, timeout=60, progress=progress)
            assert killed
            assert (loaded.name, loaded.generation, loaded.step) == ("m", 2, SAVED_AT)
            with pytest.raises(
                paramserver.errors.FailedPrecondition, match="loaded from a checkpoint meanwhile: open it"
            ):
                model.push_pull({"w": initial}).result()
            with contextlib.suppress(paramserver.errors.ParameterServerError):
                model.close()
            opened = {name: client.model(name, spec, rank=0) for name in ("m", "n")}
            for again in opened.values():
                assert again.step == SAVED_AT
                train(again, kept, STEPS)
                assert again.pull().flat.tobytes() == kept[STEPS].tobytes()

            damaged = bytearray(path.read_bytes())
            damaged[len(damaged) // 2] ^= 1
            (tmp_path / "damaged.npz").write_bytes(damaged)
            code, said = run("load", str(tmp_path / "damaged.npz"))
            assert (code, "damaged" in said) == (1, True)
            code, said = run("delete", "m", "--yes")
            assert code == 3
            assert "rank 0 of model 'm' is held" in said
            code, said = run("delete", "m")
            assert code == 2
            assert "nobody is there to confirm it" in said
            assert run("delete", "m", "--yes", "--force") == (0, "m is deleted\n")
            with pytest.raises(paramserver.errors.NotFound, match="'m' was deleted"):
                opened["m"].push_pull({"w": initial}).result()
            small = client.model(
                "m", {"other": (5,)}, optimizer=paramserver.sgd(0.1), rank=0, initial={"other": np.ones(5)}
            )
            assert small.step == 0
            code, said = run("load", str(path))
            assert code == 3
            assert "exists with another spec" in said
            assert "'w' of shape (20000,)" in said
