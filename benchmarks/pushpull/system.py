"""What a system under measurement is: processes that push and pull a `Case` when their gate lets them.

Owns folder, gate, records, and the children that belong to none of ours or theirs alone. Invariant: everything is
reaped by `close`. Must not know: turns, rows.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from benchmarks.pushpull import pacing
from benchmarks.pushpull.case import Case
from benchmarks.pushpull.trees import Tree
from paramserver.lab.processes import Child

POLL_S = 0.002
FIRST_STEP_TIMEOUT_S = 120.0


class SystemFailed(RuntimeError):
    """A process ended, or took no step in time; its last words are in the message."""


class Unavailable(Exception):
    """A system that cannot run here; the message says what would change that."""


class System(ABC):
    """Subclasses start processes in `start`."""

    name = ""
    durability = "none"
    note = ""
    replicas = 1
    codecs: tuple[str, ...] = ("fp32",)

    def __init__(self, case: Case, *, malloc: bool = True) -> None:
        self.case = case
        self.folder = Path(tempfile.mkdtemp(prefix="paramserver-bench-"))
        self.tree = Tree(malloc=malloc)
        self.gate = pacing.Gate(self.gate_file)
        self.children: list[Child] = []

    # --- what subclasses say

    @abstractmethod
    def start(self) -> None: ...

    @property
    def recorders(self) -> int:
        """Processes that record steps; together they stand for all workers."""
        return self.case.workers

    def server_pids(self) -> list[int]:
        return []

    @classmethod
    def resident_bytes(cls, case: Case) -> int:
        """About how much it will take, so that not too much runs side by side."""
        return (1 + case.workers) * (4 * case.model_bytes + (150 << 20))

    # --- files

    @property
    def gate_file(self) -> Path:
        return self.folder / "gate"

    @property
    def records(self) -> list[Path]:
        return [self.record_file(rank) for rank in range(self.recorders)]

    def record_file(self, rank: int) -> Path:
        return self.folder / f"rank-{rank}.steps"

    # --- processes

    def child(self, name: str, line: Sequence[str]) -> Child:
        started = Child(name, line, self.folder / f"{name.replace(' ', '-')}.log", environment=self.tree.environment)
        self.children.append(started)
        started.start()
        return started

    def module(self, name: str, module: str, *flags: object, python: str = sys.executable) -> Child:
        return self.child(name, [python, "-m", module, *map(str, flags)])

    def check(self) -> None:
        """Raises `SystemFailed` when a process is gone."""
        for child in self.children:
            if not child.running:
                raise SystemFailed(f"{self.name}: {child.name} ended with {child.code}:\n{child.last_words()}")

    def taken(self) -> int:
        """Steps that every rank has recorded."""
        return min(pacing.taken(record) for record in self.records)

    def step(self, steps: int, timeout_s: float) -> tuple[int, int]:
        """Let all ranks take so many steps; returns (first, count). Raises `SystemFailed`."""
        first = self.gate.granted
        wanted = self.gate.grant(steps)
        self.wait(lambda: self.taken() >= wanted, f"step {wanted}", timeout_s)
        return first, steps

    def wait(self, condition: Callable[[], bool], what: str, timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            self.check()
            if time.monotonic() > deadline_s:
                words = "\n".join(f"{child.name}: {child.last_words()}" for child in self.children)
                raise SystemFailed(f"{self.name}: no {what} within {timeout_s:g} s\n{words}")
            time.sleep(POLL_S)

    def close(self) -> None:
        for child in self.children:
            child.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> System:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
