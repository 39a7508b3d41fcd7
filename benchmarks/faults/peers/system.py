"""One peer while it runs a drill: its processes, their records, and what may be struck.

Owns folders and processes. Invariants: every process is ended, those that a peer started by itself too; a peer that
cannot run here says what to install. Must not know: what is asserted of it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.faults.peers import ledger
from benchmarks.faults.peers.judge import Watched
from benchmarks.pushpull.trees import Tree
from paramserver.lab.processes import Child

POLL_S = 0.02
START_TIMEOUT_S = 60.0

KILL_SERVER, PAUSE_SERVER, KILL_WORKER = "kill_server", "pause_server", "kill_worker"
FAULTS = (KILL_SERVER, PAUSE_SERVER, KILL_WORKER)


class PeerFailed(RuntimeError):
    """It did not come up, or what is to be struck was not found; the message has its last words."""


class Peer(ABC):
    """Subclasses start processes in `start`, and know which one serves."""

    name = ""
    label = ""
    """How it is set up, in a line."""
    durability = "memory only"
    load = "each rank at its own pace"
    faults: tuple[str, ...] = FAULTS
    ranks = 2
    steps_before = 30
    """At least, before the fault."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="psdrill-"))
        self.stop_file = self.folder / "stop"
        self.tree = Tree(malloc=False)
        self.children: list[Child] = []
        self.workers: dict[int, Child] = {}
        self.struck: set[int] = set()
        """Ranks of workers that were killed or paused themselves."""

    # --- what subclasses say

    @staticmethod
    @abstractmethod
    def versions() -> dict[str, str]:
        """Raises `Unavailable`."""

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def server_pid(self) -> int:
        """Of the process that serves now."""

    def worker_pid(self) -> int:
        """Of the one that a kill of a worker strikes."""
        return self.workers[max(self.workers)].pid

    # --- records

    def record_file(self, number: int) -> Path:
        return self.folder / f"worker-{number}.record"

    def records(self) -> list[Watched]:
        return [
            Watched(child.name, ledger.read(self.record_file(rank)), (rank,), rank in self.struck)
            for rank, child in self.workers.items()
        ]

    # --- processes

    def child(self, name: str, line: Sequence[object]) -> Child:
        words = [str(word) for word in line]
        log = self.folder / f"{name.replace(' ', '-')}.log"
        started = Child(name, words, log, environment=self.tree.environment)
        self.children.append(started)
        started.start()
        return started

    def worker(self, rank: int, module: str, *flags: object, python: str = sys.executable) -> None:
        line: list[object] = [python, "-m", module, "--rank", rank, "--record", self.record_file(rank)]
        line += ["--stop", self.stop_file, *flags]
        self.workers[rank] = self.child(f"worker {rank}", line)

    def wait(self, condition: Callable[[], bool], what: str, timeout_s: float = START_TIMEOUT_S) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline_s:
                words = "\n".join(f"{child.name}: {child.last_words()}" for child in self.children)
                raise PeerFailed(f"{self.name}: no {what} within {timeout_s:g} s\n{words}")
            time.sleep(POLL_S)

    def close(self) -> None:
        for pid in self.tree.pids():  # those that a peer started by itself, too
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for child in self.children:
            child.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Peer:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Supervised(Peer):
    """Somebody ends everything and starts it again when a process has died."""

    @abstractmethod
    def restart(self) -> None:
        """The whole job anew, from its checkpoint."""
