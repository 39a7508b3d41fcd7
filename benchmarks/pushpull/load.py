"""One rank that pushes and pulls when its gate lets it, with the public API alone: `-m benchmarks.pushpull.load`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

import paramserver
from benchmarks.pushpull.case import LEARNING_RATE, SEED
from benchmarks.pushpull.pacing import Pace

MODEL = "load"
TIMEOUT_S = 120.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--elements", type=int, required=True)
    parser.add_argument("--tensors", type=int, required=True)
    parser.add_argument("--codec", required=True)
    parser.add_argument("--log-codec", required=True)
    parser.add_argument("--optimizer", required=True, choices=("sgd", "adam"))
    parser.add_argument("--block-kib", type=int, required=True)
    parser.add_argument("--arrays", action="store_true")
    parser.add_argument("--gate", type=Path, required=True)
    parser.add_argument("--record", type=Path, required=True)
    options = parser.parse_args()
    shapes = shapes_of(options.elements, options.tensors)
    more: dict[str, Any] = {}
    if options.codec != "fp32":
        more |= {"codec": options.codec, "weights_codec": options.codec}
    if options.log_codec != "fp32":
        more["log_codec"] = options.log_codec
    if options.block_kib:
        more["block_bytes"] = options.block_kib << 10
    pace = Pace(options.gate, options.record)
    with paramserver.connect(options.servers, timeout=TIMEOUT_S) as client:
        model = client.model(
            MODEL,
            shapes,
            optimizer=paramserver.sgd(LEARNING_RATE) if options.optimizer == "sgd" else paramserver.adam(LEARNING_RATE),
            ranks=options.ranks,
            rank=options.rank,
            initial=lambda: {name: np.zeros(shape, np.float32) for name, shape in shapes.items()},
            **more,
        )
        draw = np.random.default_rng(SEED + options.rank)
        values = {name: draw.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
        gradient: Any = values
        if not options.arrays:
            gradient = model.buffer()
            for name, value in values.items():
                gradient[name][:] = value
            del values
        weights = model.pull()
        for _ in pace.steps():
            model.push_pull(gradient, out=weights).result()


def shapes_of(elements: int, tensors: int) -> dict[str, tuple[int, ...]]:
    """So many tensors of equal size, the rest in the last."""
    size = elements // tensors
    sizes = [size] * (tensors - 1) + [elements - size * (tensors - 1)]
    return {f"weights.{at}": (one,) for at, one in enumerate(sizes)}


if __name__ == "__main__":
    main()
