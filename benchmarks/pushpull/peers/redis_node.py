"""One rank on Redis: sets its gradient in blocks of 1 MiB, waits until a replica has them, and reads them back.

With hiredis, as redis-py recommends; pipelines of a few blocks, so that neither side holds a whole model in buffers.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import redis

from benchmarks.pushpull.case import SEED
from benchmarks.pushpull.pacing import Pace

BLOCK_BYTES = 1 << 20
WAIT_MS = 60_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--elements", type=int, required=True)
    parser.add_argument("--gate", type=Path, required=True)
    parser.add_argument("--record", type=Path, required=True)
    options = parser.parse_args()
    client = redis.Redis(host="127.0.0.1", port=options.port, single_connection_client=True)
    draw = np.random.default_rng(SEED + options.rank)
    gradient = draw.standard_normal(options.elements, dtype=np.float32)
    weights = np.empty_like(gradient)
    out = memoryview(weights).cast("B")
    data = memoryview(gradient).cast("B")
    keys = [f"{options.rank}:{at}" for at in range(-(-len(data) // BLOCK_BYTES))]
    for _ in Pace(options.gate, options.record).steps():
        with client.pipeline(transaction=False) as pipe:
            for at, key in enumerate(keys):
                pipe.set(key, data[at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES])
            pipe.execute_command("WAIT", 1, WAIT_MS)
            replicas = pipe.execute()[-1]
        if replicas < 1:
            raise RuntimeError("no replica has acknowledged")
        with client.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.get(key)
            at = 0
            for value in pipe.execute():
                out[at : at + len(value)] = value
                at += len(value)


if __name__ == "__main__":
    main()
