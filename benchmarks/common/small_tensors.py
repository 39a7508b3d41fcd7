"""What a step costs when its bytes are many small tensors, against one tensor of the same bytes.

Owns one comparison on a cluster that runs. Both models are there at the same time and take turns step by step, so that
whatever else the machine does meets both alike; each step is `push_pull(...).result()` of one rank, by the public API
alone. Two ways of using it: `arrays`, a gradient as named arrays of its own, as a framework gives them, and new weights
each time; `buffers`, gradients written into `Model.buffer()` and weights into `out=`, which loops that care use.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import numpy as np

import paramserver

TENSORS = 10_000
SMALL = "many"
LARGE = "one"
SEED = 11
WARM_UP_STEPS = 5


def compare(
    servers: str, *, model_bytes: int, tensors: int = TENSORS, steps: int = 40, way: str = "arrays"
) -> dict[str, Any]:
    """One row: step times in ms of both, and `ratio`: the median of many's time over one's, of steps that followed each
    other. The models' names are taken once a cluster, size and way."""
    elements = model_bytes // 4
    each, rest = divmod(elements, tensors)
    shapes = {f"layers.{number}.weight": (each + (number < rest),) for number in range(tensors)}
    lengths: dict[str, list[float]] = {SMALL: [], LARGE: []}
    with paramserver.connect(servers, timeout=120) as client:
        runs = {
            SMALL: _Run(client, f"{SMALL}-{tensors}-{model_bytes}-{way}", shapes, way),
            LARGE: _Run(client, f"{LARGE}-{model_bytes}-{way}", {"weights": (elements,)}, way),
        }
        for turn in range(WARM_UP_STEPS + steps):
            for name in sorted(runs, reverse=turn % 2 == 1):
                took_s = runs[name].step()
                if turn >= WARM_UP_STEPS:
                    lengths[name].append(took_s * 1000)
        if runs[SMALL].digest() != runs[LARGE].digest():
            raise SystemExit("the two models differ: the comparison is of different work")
    return {
        "way": way,
        "model_mb": model_bytes >> 20,
        "tensors": tensors,
        "steps": steps,
        "step_ms": {name: {"p50": round(median(found), 3)} for name, found in lengths.items()},
        "ratio": round(median(many / one for many, one in zip(lengths[SMALL], lengths[LARGE], strict=True)), 3),
    }


class _Run:
    def __init__(self, client: paramserver.Client, name: str, shapes: dict[str, tuple[int, ...]], way: str) -> None:
        self._model = client.model(
            name,
            shapes,
            optimizer=paramserver.sgd(1e-3),
            rank=0,
            initial=lambda: {one: np.zeros(shape, np.float32) for one, shape in shapes.items()},
        )
        # The same bits in both models, wherever tensors begin.
        draw = np.random.default_rng(SEED)
        values = draw.standard_normal(sum(shape[0] for shape in shapes.values()), dtype=np.float32)
        ends = np.cumsum([shape[0] for shape in shapes.values()])[:-1]
        named = dict(zip(shapes, (part.copy() for part in np.split(values, ends)), strict=True))
        self._weights: Any = self._model.pull()
        self._out = self._weights if way == "buffers" else None
        self._gradient: Any = named
        if way == "buffers":
            self._gradient = self._model.buffer()
            for one, part in named.items():
                self._gradient[one][:] = part

    def step(self) -> float:
        """Seconds from the push to weights that may be read."""
        began = time.perf_counter()
        self._weights = self._model.push_pull(self._gradient, out=self._out).result()
        return time.perf_counter() - began

    def digest(self) -> str:
        found: str = self._weights.digest()
        return found
