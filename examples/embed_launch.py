"""A training loop for any number of ranks on this machine, started and restarted by `paramserver launch`.

    paramserver launch -n 4 --servers 127.0.0.1:7101,127.0.0.1:7102,127.0.0.1:7103 -- python examples/embed_launch.py

The number of steps and a name for the model may follow. Kill -9 a worker or a server: the result is the same to the
bit. The number of ranks is part of the model: with another -n it needs another name.
"""

import os
import sys

import numpy as np

import paramserver

FEATURES, BATCH, SEED = 32, 64, 7


def main(steps: int, name: str) -> None:
    rank, ranks = int(os.environ["PARAMSERVER_RANK"]), int(os.environ["PARAMSERVER_RANKS"])
    with paramserver.connect() as client:  # servers and session file are in the environment as well
        model = client.model(
            name,
            {"w": (FEATURES,)},
            optimizer=paramserver.sgd(0.1),
            ranks=ranks,
            rank=rank,
            initial={"w": np.zeros(FEATURES, np.float32)},
        )
        weights = model.pull()
        while model.step < steps:
            if model.step % 50 == 0:
                print(f"step {model.step}")
            random = np.random.default_rng([SEED, rank, model.step])  # a restarted worker draws the same batch again
            x = random.standard_normal((BATCH, FEATURES), dtype=np.float32)
            error = x @ (weights["w"] - np.arange(FEATURES, dtype=np.float32))
            weights = model.push_pull({"w": x.T @ error / BATCH}, step=model.step).result(timeout=60)
        print(f"step {model.step}, digest {weights.digest()}, w[1] = {weights['w'][1]:.4f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200, sys.argv[2] if len(sys.argv) > 2 else "embed-launch")
