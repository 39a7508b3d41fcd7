"""A training loop of your own, two ranks, NumPy only: linear regression that survives any server.

    python examples/embed_numpy.py 127.0.0.1:7101,127.0.0.1:7102,127.0.0.1:7103 RANK [STEPS]

Start it twice, with ranks 0 and 1. Kill -9 a server, or one of the two, and start it again: the result is the same to
the bit.
"""

import sys
from pathlib import Path

import numpy as np

import paramserver

RANKS, FEATURES, BATCH, SEED = 2, 32, 64, 7


def batch(rank: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """A function of (seed, rank, step) and nothing else: a restarted worker computes the same gradient again."""
    random = np.random.default_rng([SEED, rank, step])
    x = random.standard_normal((BATCH, FEATURES), dtype=np.float32)
    return x, x @ np.arange(FEATURES, dtype=np.float32) + 1


def main(servers: str, rank: int, steps: int) -> None:
    session = Path(f"embed_numpy-rank{rank}.session")  # lets this very program take its rank back after a crash
    with paramserver.connect(servers, session_file=session) as client:
        model = client.model(
            "embed-numpy",
            {"w": (FEATURES,), "b": (1,)},
            optimizer=paramserver.sgd(0.1),
            ranks=RANKS,
            rank=rank,
            initial={"w": np.zeros(FEATURES, np.float32), "b": np.zeros(1, np.float32)},
        )
        weights = model.pull()  # version `model.step` of everything
        while model.step < steps:
            x, y = batch(rank, model.step)
            error = x @ weights["w"] + weights["b"] - y
            gradients = {"w": x.T @ error / BATCH, "b": error.mean(keepdims=True)}
            # Returns when the update of all ranks is on the disks of a majority and applied.
            weights = model.push_pull(gradients, step=model.step).result(timeout=60)
        print(f"rank {rank}: step {model.step}, digest {weights.digest()}, b = {weights['b'][0]:.4f}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 200)
