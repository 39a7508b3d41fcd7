"""Systems that run side by side take turns, round by round; what a turn cost and how fast it was.

Owns when a step counts. Systems whose turn it is not are stopped (SIGSTOP, all processes at once), so that they take
nothing from the one that works; what one of them left to do, it does in its own next turn. Of each turn the first step
is left out (what was asleep wakes up in it); a rate is bytes of the steps after it over the time they took, summed over
ranks (RULES F2). CPU time of a turn is that of the system's whole process tree. Must not know: what the systems are.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.pushpull import pacing
from benchmarks.pushpull.system import FIRST_STEP_TIMEOUT_S, System, SystemFailed
from benchmarks.pushpull.trees import machine_busy_s, peak_bytes
from paramserver.lab.usage import cpu_s as cpu_s_of

WARM_UP_MB = 640
"""Pushed by each rank before anything counts: the first segments of our log are made and zeroed, later ones are
recycled; and every allocator has seen its sizes."""
WARM_UP_STEPS_MIN = 5
STEPS_MIN = 3
STEPS_MAX = 2000
QUIET_WINDOW_S = 0.2
QUIET_SHARE = 0.1
"""Of a core: a system that uses less has finished what it had to do, and need not be waited for."""
SETTLE_S = 0.6
"""The longest wait for that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How long it may take: so many turns of about so many seconds each."""

    rounds: int = 5
    seconds: float = 3.0
    warm_up_mb: int = WARM_UP_MB
    settle_s: float = SETTLE_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What came of some steps. `lengths_ms` are of single steps, of every rank. `elsewhere` is the share of a core that
    all other processes used meanwhile."""

    steps: int
    mb_per_s: float
    lengths_ms: list[float]
    cpu_s_per_gb: float
    server_cpu_s_per_gb: list[float]
    """Of each server."""
    server_peak_bytes: int
    """The most memory that a server has held so far."""
    elsewhere: float


@dataclass(slots=True)
class Turns:
    """Of one system over all rounds."""

    system: System
    turns: list[Turn] = field(default_factory=list)
    failure: str = ""

    @property
    def rates(self) -> list[float]:
        return [turn.mb_per_s for turn in self.turns]


def warm_up(system: System, megabytes: int = WARM_UP_MB, settle_s: float = SETTLE_S) -> float:
    """Returns the seconds a step takes."""
    system.step(1, FIRST_STEP_TIMEOUT_S)
    first, count = system.step(max(WARM_UP_STEPS_MIN, megabytes // system.case.model_mb), FIRST_STEP_TIMEOUT_S)
    late = [pacing.read(record, first + count // 2, count - count // 2) for record in system.records]
    settle(system, settle_s)
    return statistics.median(step.end_s - step.begin_s for steps in late for step in steps)


def take_turn(system: System, seconds: float, step_s: float, settle_s: float = SETTLE_S) -> Turn:
    steps = 1 + min(STEPS_MAX, max(STEPS_MIN - 1, round(seconds / max(step_s, 1e-6))))
    pids = system.server_pids()
    servers_s = [cpu_s_of([pid]) for pid in pids]
    cpu_s, busy_s, began_s = system.tree.cpu_s(), machine_busy_s(), time.monotonic()
    first, count = system.step(steps, max(FIRST_STEP_TIMEOUT_S, 20 * seconds))
    settle(system, settle_s)
    wall_s = time.monotonic() - began_s
    cpu_s, busy_s = system.tree.cpu_s() - cpu_s, machine_busy_s() - busy_s
    case = system.case
    share, moved_gb = case.step_bytes / system.recorders, count * case.step_bytes / 1e9
    rate, lengths = 0.0, []
    for record in system.records:
        first_step, *rest = pacing.read(record, first, count)
        rate += share * len(rest) / (rest[-1].end_s - first_step.end_s)
        lengths += [(one.end_s - one.begin_s) * 1000 for one in rest]
    return Turn(
        steps=count - 1,
        mb_per_s=rate / 1e6,
        lengths_ms=lengths,
        cpu_s_per_gb=cpu_s / moved_gb,
        server_cpu_s_per_gb=[
            (cpu_s_of([pid]) - before) / moved_gb for pid, before in zip(pids, servers_s, strict=True)
        ],
        server_peak_bytes=max(map(peak_bytes, pids), default=0),
        elsewhere=max(0.0, busy_s - cpu_s) / wall_s,
    )


def settle(system: System, timeout_s: float) -> None:
    """Until it uses next to no CPU."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        cpu_s, began_s = system.tree.cpu_s(), time.monotonic()
        time.sleep(QUIET_WINDOW_S)  # the measured time itself
        if system.tree.cpu_s() - cpu_s <= QUIET_SHARE * (time.monotonic() - began_s):
            return


def interleaved(systems: Sequence[System], effort: Effort) -> list[Turns]:
    """Each system of each round in turn; all have been started, and are stopped at the end. The order turns round, so
    that nobody always follows the same. A system that fails takes no further turn, and has its `failure`."""
    found = [Turns(system) for system in systems]
    step_s: dict[int, float] = {}
    for one in found:
        with working(one):
            step_s[id(one)] = warm_up(one.system, effort.warm_up_mb, effort.settle_s)
    for number in range(effort.rounds):
        at = number % len(found)
        for one in (*found[at:], *found[:at]):
            if not one.failure:
                with working(one):
                    one.turns.append(take_turn(one.system, effort.seconds, step_s[id(one)], effort.settle_s))
    return found


@contextlib.contextmanager
def working(one: Turns) -> Iterator[None]:
    """Only then it runs."""
    one.system.tree.thaw()
    try:
        yield
    except SystemFailed as error:
        one.failure = str(error)
    finally:
        one.system.tree.freeze()
