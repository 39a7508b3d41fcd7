"""A training loop of your own on a GPU, one rank: gradients are on their way while the backward pass goes on.

    python examples/embed_cupy.py 127.0.0.1:7101,127.0.0.1:7102,127.0.0.1:7103 [STEPS]

Without CuPy or without a GPU the same program runs on NumPy. Gradients and weights travel as bf16, encoded and decoded
on the device.
"""

import sys
from typing import Any

import numpy as np

import paramserver

FEATURES, UNITS, BATCH, SEED = 16, 32, 64, 7


def batch(xp: Any, step: int) -> tuple[Any, Any]:
    """Made on the host, a function of (seed, step) alone; then copied to the device."""
    random = np.random.default_rng([SEED, step])
    x = random.standard_normal((BATCH, FEATURES), dtype=np.float32)
    return xp.asarray(x), xp.asarray(np.tanh(x.sum(axis=1, keepdims=True)))


def initial() -> dict[str, np.ndarray]:
    random = np.random.default_rng(SEED)
    return {
        "w1": (random.standard_normal((FEATURES, UNITS)) / 4).astype(np.float32),
        "b1": np.zeros(UNITS, np.float32),
        "w2": (random.standard_normal((UNITS, 1)) / 4).astype(np.float32),
    }


def main(servers: str, steps: int) -> None:
    values = initial()
    with (
        paramserver.connect(servers) as client,
        client.model(
            "embed-cupy",
            values,
            optimizer=paramserver.adam(0.01),
            rank=0,
            initial=values,
            codec="bf16",
            weights_codec="bf16",
        ) as model,
    ):
        link = paramserver.Link(model)  # the first GPU, or NumPy
        xp = link.device.xp
        weights = link.pull()  # name -> arrays of the device, the same ones for good
        losses = []
        while model.step < steps:
            x, y = batch(xp, model.step)
            hidden = xp.maximum(x @ weights["w1"] + weights["b1"], 0)
            error = hidden @ weights["w2"] - y
            # The backward pass: each gradient is handed over as soon as its kernels were launched.
            link.put("w2", hidden.T @ error / BATCH)
            below = error @ weights["w2"].T * (hidden > 0) / BATCH
            link.put("b1", below.sum(axis=0))
            link.put("w1", x.T @ below)
            losses.append(float((error * error).mean()))
            # Waits for the device, not for the servers; an error of the device leaves the whole step unsent.
            link.push_pull(step=model.step).result(timeout=60)
            weights = link.load()
        print(f"{link.device.name}: step {model.step}, loss {losses[0]:.3f} -> {losses[-1]:.3f}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 200)
