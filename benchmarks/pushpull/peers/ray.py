"""Ray as a parameter server: an actor that holds the weights, a worker actor a rank, arrays through shared memory."""

from __future__ import annotations

import shutil
import tempfile

from benchmarks.pushpull.case import Case
from benchmarks.pushpull.peers.environment import interpreter, version
from benchmarks.pushpull.system import System

MIB = 1 << 20


class Ray(System):
    name = "ray"
    durability = "none; shared memory"
    note = "not replicated; arrays move through shared memory on one machine, not over TCP"

    def __init__(self, case: Case, *, malloc: bool = True) -> None:
        self._python = interpreter("ray")
        super().__init__(case, malloc=malloc)
        # Names of its sockets lie below, and have to be short.
        self._sockets = tempfile.mkdtemp(prefix="psray-", dir="/tmp")

    @staticmethod
    def versions() -> dict[str, str]:
        return {"ray": version("ray", "ray")}

    @property
    def recorders(self) -> int:
        """The driver, which steps all workers."""
        return 1

    def start(self) -> None:
        flags: list[object] = ["--workers", self.case.workers, "--elements", self.case.elements]
        flags += ["--store-mb", 256 + (self.case.workers + 3) * 2 * self.case.model_mb, "--folder", self._sockets]
        flags += ["--gate", self.gate_file, "--record", self.record_file(0)]
        self.module("driver", "benchmarks.pushpull.peers.ray_node", *flags, python=self._python)

    def close(self) -> None:
        import os
        import signal

        pids = self.tree.pids()
        super().close()
        for pid in pids:  # those that Ray started
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        shutil.rmtree(self._sockets, ignore_errors=True)
