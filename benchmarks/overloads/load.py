"""One rank that pushes and pulls as fast as it may, by the public API alone: `python -m benchmarks.overloads.load`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import paramserver
from paramserver.cli.recorder import Recorder
from paramserver.lab.priority import yield_to_servers

MODEL = "load"
TIMEOUT_S = 60.0
SEED = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--model-bytes", type=int, required=True)
    parser.add_argument("--record", type=Path, required=True)
    options = parser.parse_args()
    yield_to_servers()
    elements = options.model_bytes // 4
    record = Recorder(options.record)
    with paramserver.connect(options.servers, timeout=TIMEOUT_S) as client:
        model = client.model(
            MODEL,
            {"weights": (elements,)},
            optimizer=paramserver.sgd(1e-3),
            ranks=options.ranks,
            rank=options.rank,
            initial=lambda: {"weights": np.zeros(elements, np.float32)},
        )
        gradient = model.buffer()
        draw = np.random.default_rng(SEED + options.rank)
        gradient["weights"][:] = draw.standard_normal(elements, dtype=np.float32)
        weights = model.pull()
        record.write("start", rank=options.rank, pid=0, first_step=model.step)
        while True:
            step = model.step
            model.push_pull(gradient, out=weights).result()
            record.write("step", step=step)


if __name__ == "__main__":
    main()
