"""One rank of the counting load: `python -m paramserver.lab.chaos.counter`, by the public API alone.

Writes down each step before it is pushed and after it is acknowledged, each exception, and whether the weights that
came back hold exactly the updates they should.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

import paramserver
from paramserver.lab.chaos import counting
from paramserver.lab.chaos.lines import Lines
from paramserver.wire.spec import Reduction
from worker.errors import DeadlineExceeded, Unavailable
from worker.futures import Future
from worker.model import Model
from worker.tensors import Tensors

T = TypeVar("T")
CONNECT_S = 60.0
CALL_S = 5.0
"""Budget of each call, as a careful script would have one: beyond it the exception is written down."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--session", type=Path, required=True)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--pace-ms", type=float, required=True, help="between a step and the next")
    options = parser.parse_args()
    lines = Lines(options.record)
    elements = counting.BLOCKS * counting.BLOCK_ELEMENTS
    with paramserver.connect(options.servers, timeout=CONNECT_S, session_file=options.session) as client:

        def opened() -> Model:
            return client.model(
                counting.MODEL,
                {"counts": (elements,)},
                optimizer=paramserver.sgd(1.0),
                ranks=counting.RANKS,
                rank=options.rank,
                initial=lambda: {"counts": np.zeros(elements, np.float32)},
                reduction=Reduction.SUM,
                block_bytes=counting.BLOCK_BYTES,
                timeout=CALL_S,
            )

        model = patiently(opened, lines)
        weights = patiently(lambda: model.pull(timeout=CALL_S), lines)
        lines.write("start", rank=options.rank, pid=os.getpid(), first_step=model.step)
        gradient = model.buffer()
        while True:
            step = model.step
            counting.gradient(options.rank, step, gradient["counts"])
            lines.write("push", step=step)
            finish(model, model.push_pull(gradient, step=step, timeout=CALL_S, out=weights), lines)
            done_s = time.monotonic()
            blocks = weights["counts"].reshape(counting.BLOCKS, counting.BLOCK_ELEMENTS)
            steps = [step + 1] * counting.RANKS
            found = counting.check_all(list(blocks), steps, steps)
            lines.write("step", done_s, step=step, missing=found.missing, extra=found.extra)
            time.sleep(options.pace_ms / 1000)


def patiently(call: Callable[[], T], lines: Lines) -> T:
    while True:
        try:
            return call()
        except (DeadlineExceeded, Unavailable) as error:
            lines.write("error", name=type(error).__name__, cause=error.cause)
            time.sleep(0.05)


def finish(model: Model, future: Future[Tensors], lines: Lines) -> None:
    """The documented way on: a step whose budget was used up is not lost, and is waited for again."""
    while True:
        try:
            future.result()
        except DeadlineExceeded as error:
            lines.write("error", name=type(error).__name__, cause=error.cause)
            future = model.resume(timeout=CALL_S)
        else:
            return


if __name__ == "__main__":
    main()
