"""One rank of gloo's all-reduce: the gradient is copied into a bucket (as DistributedDataParallel does), summed over
all ranks in place, and stepped into the rank's own weights."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import distributed

from benchmarks.pushpull.case import LEARNING_RATE, SEED
from benchmarks.pushpull.pacing import Pace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--elements", type=int, required=True)
    parser.add_argument("--gate", type=Path, required=True)
    parser.add_argument("--record", type=Path, required=True)
    options = parser.parse_args()
    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{options.port}", rank=options.rank, world_size=options.ranks
    )
    draw = np.random.default_rng(SEED + options.rank)
    gradient = torch.from_numpy(draw.standard_normal(options.elements, dtype=np.float32))
    weights, bucket = torch.zeros(options.elements), torch.empty(options.elements)
    for _ in Pace(options.gate, options.record).steps():
        bucket.copy_(gradient)
        distributed.all_reduce(bucket)
        weights.sub_(bucket, alpha=LEARNING_RATE / options.ranks)


if __name__ == "__main__":
    main()
