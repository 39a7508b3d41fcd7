"""JAX trained by real servers, against optax in one process: the same path, also when a server is killed (RULES O1)."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import paramserver
from paramserver.lab.cluster import Cluster

ROOT = Path(__file__).parents[3]
STEPS, BATCH, CLASSES, SEED = 200, 32, 10, 3
RTOL = 1e-5
SGD = (paramserver.sgd(0.05), lambda: optax.sgd(0.05))
ADAM = (paramserver.adam(1e-3), lambda: optax.adam(1e-3))
TIMEOUT_S = 90
EXAMPLE_STEPS = 200


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as running:
        running.start()
        yield running


def batch(rank: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng([SEED, rank, step])
    x = random.standard_normal((BATCH, 8, 8, 1), dtype=np.float32)
    quarters = x.reshape(BATCH, 2, 4, 2, 4).mean((2, 4)).reshape(BATCH, 4)
    return x, quarters.argmax(1) + 4 * (quarters.sum(1) > 0)


def initial() -> Any:
    keys = jax.random.split(jax.random.key(SEED), 3)
    return {
        "conv": [
            {"w": jax.random.normal(keys[0], (3, 3, 1, 8)) / 3, "b": jnp.zeros(8)},
            {"w": jax.random.normal(keys[1], (3, 3, 8, 16)) / 9, "b": jnp.zeros(16)},
        ],
        "dense": {"w": jax.random.normal(keys[2], (64, CLASSES)) / 8, "b": jnp.zeros(CLASSES)},
    }


def loss(params: Any, x: Any, labels: Any) -> Any:
    for layer in params["conv"]:
        x = jax.lax.conv_general_dilated(x, layer["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = jnp.tanh(x + layer["b"])
        x = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
    logits = x.reshape(BATCH, -1) @ params["dense"]["w"] + params["dense"]["b"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


loss_and_gradient = jax.jit(jax.value_and_grad(loss))


def alone(transformation: optax.GradientTransformation, ranks: int) -> tuple[list[float], Any]:
    """Losses of rank 0, and the weights at the end, of optax in one process on the mean of the ranks' gradients."""
    params = initial()
    state = transformation.init(params)
    losses = []
    for step in range(STEPS):
        found = [loss_and_gradient(params, *batch(rank, step)) for rank in range(ranks)]
        losses.append(float(found[0][0]))
        mean = jax.tree.map(lambda *grads: sum(grads) / ranks, *(grads for _, grads in found))
        updates, state = transformation.update(mean, state, params)
        params = optax.apply_updates(params, updates)
    return losses, params


def on_servers(
    cluster: Cluster,
    name: str,
    optimizer: Any,
    *,
    rank: int = 0,
    ranks: int = 1,
    as_optax: bool = False,
    at_step: Callable[[int], None] = lambda _: None,
) -> tuple[list[float], Any, str]:
    losses = []
    with paramserver.connect(cluster.endpoints, timeout=60) as client:
        opt = paramserver.jax.optimizer(client, name, optimizer, ranks=ranks, rank=rank)
        state = opt.init(initial())
        params = opt.pull()
        for step in range(STEPS):
            at_step(step)
            value, grads = loss_and_gradient(params, *batch(rank, step))
            losses.append(float(value))
            if as_optax:
                updates, state = opt.update(grads, state, params)
                params = optax.apply_updates(params, updates)
            else:
                params, state = opt.step(grads, state)
        return losses, params, opt.model.pull().digest()


def assert_follows(found: tuple[list[float], Any], expected: tuple[list[float], Any]) -> None:
    assert expected[0][-1] < 0.9 * expected[0][0], "it learns"
    np.testing.assert_allclose(found[0], expected[0], rtol=RTOL)
    for one, other in zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]), strict=True):
        # Of the tensor's size: a weight that happens to lie at zero has no digits to compare.
        np.testing.assert_allclose(one, other, rtol=RTOL, atol=RTOL * float(jnp.abs(other).max()))


@pytest.mark.parametrize(("optimizer", "reference"), [SGD, ADAM], ids=["sgd", "adam"])
def test_one_rank_follows_optax(cluster: Cluster, optimizer: Any, reference: Any) -> None:
    losses, params, _ = on_servers(cluster, f"one-{optimizer}", optimizer)
    assert_follows((losses, params), alone(reference(), 1))


@pytest.mark.parametrize(("optimizer", "reference"), [SGD, ADAM], ids=["sgd", "adam"])
def test_two_ranks_follow_optax_on_the_mean_of_their_gradients(
    cluster: Cluster, optimizer: Any, reference: Any
) -> None:
    with ThreadPoolExecutor(2) as threads:
        ends = [
            end.result(TIMEOUT_S)
            for end in [
                threads.submit(on_servers, cluster, f"two-{optimizer}", optimizer, rank=rank, ranks=2)
                for rank in range(2)
            ]
        ]
    assert ends[0][2] == ends[1][2]
    assert_follows(ends[0][:2], alone(reference(), 2))


def test_optaxs_manner_follows_it_too(cluster: Cluster) -> None:
    losses, params, _ = on_servers(cluster, "manner", ADAM[0], as_optax=True)
    assert_follows((losses, params), alone(ADAM[1](), 1))


def test_a_killed_server_changes_no_bit(cluster: Cluster) -> None:
    """Neither of the losses nor of the weights: what died is known to the servers alone."""
    calm = on_servers(cluster, "calm", ADAM[0])
    killed: list[int] = []

    def kill(step: int) -> None:
        if step == 60:
            killed.append(cluster.leader_of(1))
            cluster.kill(killed[0])
        if step == 140:
            cluster.start_server(killed[0])

    losses, params, digest = on_servers(cluster, "disturbed", ADAM[0], at_step=kill)
    assert killed
    assert losses == calm[0]
    assert digest == calm[2]
    for one, other in zip(jax.tree.leaves(params), jax.tree.leaves(calm[1]), strict=True):
        assert np.array_equal(one, other)


# --- examples/embed_jax.py


def launched(servers: str, model: str) -> subprocess.Popen[str]:
    words = ["launch", "-n", "2", "--servers", servers, "--", sys.executable, str(ROOT / "examples/embed_jax.py")]
    return subprocess.Popen(
        [sys.executable, "-m", "paramserver", *words, str(EXAMPLE_STEPS), model],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_example_outlives_a_worker_that_is_killed(cluster: Cluster) -> None:
    """And ends with the bits that it has undisturbed."""
    with launched(cluster.endpoints, "example-calm") as job:
        try:
            calm, error = job.communicate(timeout=TIMEOUT_S)
        finally:
            job.kill()
    assert job.returncode == 0, error
    with launched(cluster.endpoints, "example-disturbed") as job:
        watchdog = threading.Timer(TIMEOUT_S, job.kill)
        watchdog.start()
        try:
            assert job.stdout is not None
            assert job.stderr is not None
            pids = [int(pid) for pid in re.findall(r"\d+", job.stderr.readline().partition("processes")[2])]
            while not (line := job.stdout.readline()).startswith("[1] step 50,"):
                assert line, job.stderr.read()
            os.kill(pids[1], signal.SIGKILL)
            out, error = job.stdout.read(), job.stderr.read()
            job.wait(TIMEOUT_S)
        finally:
            watchdog.cancel()
            job.kill()
    assert job.returncode == 0, error
    assert re.search(r"rank 1 was killed by SIGKILL after [\d.]+ s: restart 1 of 3", error), error
    ends = [
        dict(re.findall(r"^\[(\d)\] (step 200, digest .*, loss 0\.\d+)$", text, re.MULTILINE)) for text in (calm, out)
    ]
    assert set(ends[0]) == {"0", "1"}, calm
    assert len(set(ends[0].values())) == 1
    assert ends[1] == ends[0]
    first, last = (
        float(re.search(words, calm)[1]) for words in (r"step 0, loss ([\d.]+)", r"digest .*, loss ([\d.]+)")
    )  # type: ignore[index]
    assert last < first / 4
