"""Two ranks in one program on asyncio: linear regression, each rank a task of its own.

python examples/embed_asyncio.py 127.0.0.1:7101,127.0.0.1:7102,127.0.0.1:7103 [STEPS]
"""

import asyncio
import sys

import numpy as np

import paramserver
from paramserver import aio

RANKS, FEATURES, BATCH, SEED = 2, 32, 64, 7
SPEC = paramserver.Spec({"w": (FEATURES,), "b": (1,)}, paramserver.sgd(0.1), ranks=RANKS)


async def rank_of(client: aio.Client, rank: int, steps: int) -> paramserver.Tensors:
    zeros = {"w": np.zeros(FEATURES, np.float32), "b": np.zeros(1, np.float32)}
    async with await client.model("embed-asyncio", SPEC, rank=rank, initial=zeros) as model:
        weights = await model.pull()
        while model.step < steps:
            random = np.random.default_rng([SEED, rank, model.step])
            x = random.standard_normal((BATCH, FEATURES), dtype=np.float32)
            error = x @ weights["w"] + weights["b"] - (x @ np.arange(FEATURES, dtype=np.float32) + 1)
            gradients = {"w": x.T @ error / BATCH, "b": error.mean(keepdims=True)}
            weights = await model.push_pull(gradients, step=model.step, timeout=60)
        return weights


async def main(servers: str, steps: int) -> None:
    async with aio.connect(servers) as client:
        found = await asyncio.gather(*(rank_of(client, rank, steps) for rank in range(RANKS)))
    for rank, weights in enumerate(found):
        print(f"rank {rank}: version {weights.version}, digest {weights.digest()}, b = {weights['b'][0]:.4f}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 150))
