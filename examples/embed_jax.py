"""A training loop in JAX whose optimizer runs on the servers; any number of ranks.

    paramserver launch -n 2 --servers 127.0.0.1:7101,127.0.0.1:7102,127.0.0.1:7103 -- python examples/embed_jax.py

The number of steps and a name for the model may follow. Kill -9 a server, or a worker, which the launcher starts again:
the result is the same to the bit.
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import paramserver

FEATURES, HIDDEN, BATCH, SEED = 8, 32, 64, 7


def batch(rank: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """A function of (seed, rank, step) and nothing else: a restarted worker computes the same gradient again."""
    random = np.random.default_rng([SEED, rank, step])
    x = random.standard_normal((BATCH, FEATURES), dtype=np.float32)
    return x, np.sin(x[:, :1] + x[:, 1:2])


def loss(params: Any, x: Any, y: Any) -> Any:
    hidden = jnp.tanh(x @ params["hidden"]["w"] + params["hidden"]["b"])
    return jnp.mean((hidden @ params["out"]["w"] + params["out"]["b"] - y) ** 2)


def initial() -> Any:
    first, second = jax.random.split(jax.random.key(SEED))
    return {
        "hidden": {"w": jax.random.normal(first, (FEATURES, HIDDEN)) / 3, "b": jnp.zeros(HIDDEN)},
        "out": {"w": jax.random.normal(second, (HIDDEN, 1)) / 6, "b": jnp.zeros(1)},
    }


def main(steps: int, name: str) -> None:
    loss_and_gradient = jax.jit(jax.value_and_grad(loss))
    with paramserver.connect() as client:  # servers, session file and rank are in the environment
        # With optax alone: opt = optax.adam(1e-2)
        opt = paramserver.jax.optimizer(client, name, paramserver.adam(1e-2))
        params = initial()
        state = opt.init(params)
        params = opt.pull()  # what the servers have: after a restart the weights of the step it goes on with
        rank = opt.model.rank or 0
        while state.step < steps:
            value, grads = loss_and_gradient(params, *batch(rank, state.step))
            if state.step % 50 == 0:
                print(f"step {state.step}, loss {value:.4f}")
            # With optax alone: updates, state = opt.update(grads, state); params = optax.apply_updates(params, updates)
            params, state = opt.step(grads, state)
        test = loss(params, *batch(opt.model.spec.ranks, 0))
        print(f"step {state.step}, digest {opt.model.pull().digest()}, loss {test:.4f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200, sys.argv[2] if len(sys.argv) > 2 else "embed-jax")
