"""What workers wrote down while they trained (`paramserver worker --record FILE`), and figures made of it.

One JSON object a line, each with `event` and `time` (seconds of CLOCK_MONOTONIC, one clock for all processes of a
machine):

    {"event": "start", "time": 1.0, "rank": 0, "pid": 7, "first_step": 0}
    {"event": "step",  "time": 1.1, "step": 0, "loss": 2.3, "accuracy": null}    acknowledged: every block applied
    {"event": "wait",  "time": 1.2, "why": "group 2 has no leader"}
    {"event": "end",   "time": 9.9, "accuracy": 0.97, "digest": "..."}

Invariants: a record survives kill -9 (a line is one write); a last line that was cut is not a record; a worker that was
started again appends. Must not know: processes, faults.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

STALL_WINDOW_S = 5.0
"""How long after a fault a gap still counts as caused by it."""


@dataclass(frozen=True, slots=True)
class Step:
    """A completed step: all its blocks were acknowledged by `time_s`."""

    step: int
    time_s: float
    loss: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    time_s: float
    why: str


@dataclass(frozen=True, slots=True)
class Start:
    time_s: float
    pid: int
    first_step: int


@dataclass(frozen=True, slots=True)
class End:
    time_s: float
    accuracy: float | None
    digest: str


Event = Step | Wait | Start | End


@dataclass(frozen=True, slots=True)
class Record:
    """Of one rank, over all its starts."""

    rank: int
    events: tuple[Event, ...]

    @property
    def steps(self) -> tuple[Step, ...]:
        return tuple(event for event in self.events if isinstance(event, Step))

    @property
    def waits(self) -> tuple[Wait, ...]:
        return tuple(event for event in self.events if isinstance(event, Wait))

    @property
    def end(self) -> End | None:
        return next((event for event in reversed(self.events) if isinstance(event, End)), None)

    @property
    def last_step(self) -> int:
        """The highest completed step; -1 before the first."""
        return max((step.step for step in self.steps), default=-1)


class WholeLines:
    """Of a file that is being written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> bytes:
        """What came since the last call; a line that is not whole yet waits for the next."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return b""
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole


class Tail:
    """Reads a record while it is being written."""

    def __init__(self, path: Path) -> None:
        self._lines = WholeLines(path)

    def read(self) -> list[Event]:
        """What came since the last call."""
        return list(parse(self._lines.read()))


def read(path: Path, rank: int) -> Record:
    return Record(rank, tuple(Tail(path).read()))


def parse(data: bytes) -> Iterator[Event]:
    for line in data.splitlines():
        try:
            event = _event(json.loads(line))
        except (ValueError, KeyError, TypeError):
            continue  # the writer was killed in the middle of this line
        if event is not None:
            yield event


def _event(fields: dict[str, Any]) -> Event | None:
    kind = fields["event"]
    time_s = float(fields["time"])
    if kind == "step":
        return Step(int(fields["step"]), time_s, fields.get("loss"), fields.get("accuracy"))
    if kind == "wait":
        return Wait(time_s, str(fields["why"]))
    if kind == "start":
        return Start(time_s, int(fields["pid"]), int(fields["first_step"]))
    if kind == "end":
        return End(time_s, fields.get("accuracy"), str(fields["digest"]))
    return None


# --- figures


def gaps(record: Record) -> list[tuple[float, float]]:
    """(from, to) of consecutive completed steps."""
    return list(pairwise(step.time_s for step in record.steps))


def median_step_s(records: Sequence[Record]) -> float:
    """The run's median step; 0 without two steps."""
    lengths = [end - start for record in records for start, end in gaps(record)]
    return median(lengths) if lengths else 0.0


def stall_ms(records: Sequence[Record], fault_s: float, until_s: float | None = None) -> float:
    """RULES F1: the longest time between two consecutive completed steps of a worker around the fault, less the run's
    median step. Gaps count that end after the fault and begin before `until_s` (the next thing that was done to the
    cluster) and within STALL_WINDOW_S. The worst worker counts; NaN when nobody completed a step after the fault."""
    limit_s = fault_s + STALL_WINDOW_S if until_s is None else min(until_s, fault_s + STALL_WINDOW_S)
    lengths = [end - start for record in records for start, end in gaps(record) if end >= fault_s and start <= limit_s]
    if not lengths:
        return float("nan")
    return max(0.0, max(lengths) - median_step_s(records)) * 1000.0


def steps_between(record: Record, start_s: float, end_s: float) -> int:
    """Steps completed in [start, end)."""
    return sum(1 for step in record.steps if start_s <= step.time_s < end_s)


def steps_per_s(records: Sequence[Record]) -> float:
    """Global steps (every rank takes part in each) over the time from the first to the last completed one."""
    times = [step.time_s for record in records for step in record.steps]
    count = len({step.step for record in records for step in record.steps})
    if count < 2 or max(times) <= min(times):
        return 0.0
    return (count - 1) / (max(times) - min(times))
