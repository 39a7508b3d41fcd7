"""A batch too large to be computed at once, in pieces that the client adds up; then a part of the model by name.

python examples/embed_accumulate.py 127.0.0.1:7101,127.0.0.1:7102,127.0.0.1:7103 [STEPS]
"""

import sys

import numpy as np

import paramserver

FEATURES, PIECES, ROWS, SEED = 32, 4, 16, 7


def main(servers: str, steps: int) -> None:
    with paramserver.connect(servers) as client:
        zeros = {"w": np.zeros(FEATURES, np.float32), "b": np.zeros(1, np.float32)}
        model = client.model("embed-accumulate", zeros, optimizer=paramserver.sgd(0.1), rank=0, initial=zeros)
        weights = model.pull()
        while model.step < steps:
            random = np.random.default_rng([SEED, model.step])
            for _ in range(PIECES):
                x = random.standard_normal((ROWS, FEATURES), dtype=np.float32)
                error = x @ weights["w"] + weights["b"] - (x @ np.arange(FEATURES, dtype=np.float32) + 1)
                # Added up in float32 in the order of these calls: the same calls give the same bits.
                model.accumulate({"w": x.T @ error / ROWS, "b": error.mean(keepdims=True)}, weight=1 / PIECES)
            pushed = model.push(step=model.step).result(timeout=60)  # no weights come back
            weights = model.pull(version=pushed.version, out=weights)
        print(f"step {model.step}, b = {model.pull(['b'])['b'][0]:.4f}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 150)
