"""What a worker of the drill does and writes down: steps that each add one to a cell of every block.

A step is a pause (the computing) and a push; a push that is acknowledged counts, and so the sum that the system holds
in the end says how many were lost or counted twice. One JSON object a line, `time` in seconds of CLOCK_MONOTONIC:

    {"event": "begin", "time": 1.0, "step": 0}
    {"event": "step",  "time": 1.1, "step": 0}                  acknowledged
    {"event": "error", "time": 1.2, "step": 1, "what": "ConnectionError: ..."}
    {"event": "final", "time": 9.0, "counts": {"0": [57, 57, 57, 57]}}

Owns the record and the loop. Invariants: a line is one write, so that a record survives kill -9; a worker that is
started again goes on behind its record. Standard library only: peers use it in environments of their own. Must not
know: systems.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

BLOCKS = 4
COMPUTE_S = 0.004
"""Between two pushes: what a step of training computes."""
BETWEEN_TRIES_S = 0.05
CHECKPOINT_EVERY = 100
"""Steps, where there are checkpoints."""
WHAT_CHARACTERS_MAX = 200


class Unanswered(Exception):
    """A push that may or may not count, of a library without an exception for it; says by itself what it was."""


class Ledger:
    """Of one worker. `stop`: a file that exists once the drill is over."""

    def __init__(self, record: Path, stop: Path) -> None:
        self._stop = stop
        self.next_step = first_unacknowledged(record)
        self._file = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    @property
    def over(self) -> bool:
        return self._stop.exists()

    def write(self, event: str, **more: Any) -> None:
        line = json.dumps({"event": event, "time": time.monotonic(), **more}) + "\n"
        os.write(self._file, line.encode())

    def error(self, step: int, error: BaseException) -> None:
        """Its name and first line."""
        line = str(error).strip().partition("\n")[0]
        said = line if isinstance(error, Unanswered) else f"{type(error).__name__}: {line}"
        self.write("error", step=step, what=said[:WHAT_CHARACTERS_MAX])

    def final(self, counts: dict[int, Sequence[float]]) -> None:
        """Rank -> what each block says that it has pushed."""
        self.write("final", counts={str(rank): [int(one) for one in cells] for rank, cells in counts.items()})

    def steps(self) -> Iterator[int]:
        """Each is acknowledged when the next is asked for."""
        while not self.over:
            time.sleep(COMPUTE_S)
            step = self.next_step
            self.write("begin", step=step)
            yield step
            self.write("step", step=step)
            self.next_step += 1

    def insist(self, push: Callable[[int], object], retriable: type[Exception]) -> None:
        """Push step after step until the drill is over; one that fails is written down and sent again."""
        for step in self.steps():
            while True:
                try:
                    push(step)
                    break
                except retriable as error:
                    self.error(step, error)
                    time.sleep(BETWEEN_TRIES_S)
                if self.over:
                    return


def read(record: Path) -> list[dict[str, Any]]:
    """The last line may have been cut by a kill."""
    try:
        lines = record.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


def first_unacknowledged(record: Path) -> int:
    return max((line["step"] for line in read(record) if line["event"] == "step"), default=-1) + 1
