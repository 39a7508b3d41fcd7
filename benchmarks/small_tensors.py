"""What many small tensors cost against one tensor of the same bytes: they share blocks, so nearly nothing.

    python -m benchmarks.small_tensors --model-mb 4,64 --out benchmarks/results/small_tensors.json

Three servers, fsync on, one worker in this process. Target: 1.2 times at most, aim 1.05, at 64 MB.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import machine, results
from benchmarks.common.small_tensors import TENSORS, compare
from paramserver.lab.cluster import Cluster


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-mb", default="4,64", metavar="MB,...")
    parser.add_argument("--tensors", default=TENSORS, type=int)
    parser.add_argument("--steps", default=40, type=int, help="measured, of each model")
    parser.add_argument(
        "--ways", default="arrays,buffers", help="arrays: named arrays each step; buffers: buffer() and out="
    )
    parser.add_argument("--out", metavar="FILE", help="write the JSON here too")
    options = parser.parse_args()
    rows = []
    for model_mb in map(int, options.model_mb.split(",")):
        for way in options.ways.split(","):
            with Cluster() as cluster:
                row = compare(
                    cluster.endpoints,
                    model_bytes=model_mb << 20,
                    tensors=options.tensors,
                    steps=options.steps,
                    way=way,
                )
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
    results.write(
        {
            "benchmark": "small_tensors",
            "command": machine.command("small_tensors"),
            "machine": machine.machine(),
            "versions": machine.versions(),
            "rows": rows,
        },
        options.out,
    )


if __name__ == "__main__":
    main()
