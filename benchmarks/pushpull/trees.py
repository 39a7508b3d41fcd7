"""Process trees, known by a mark in their environment, and what all of them are started with.

A system may start processes that nobody else knows of (Ray does); all of them inherit the mark. Owns the malloc
environment, which is the same for every system (RULES F3). Must not know: systems.
"""

from __future__ import annotations

import contextlib
import os
import signal
import uuid
from pathlib import Path

from paramserver.lab.usage import cpu_s

ROOT = Path(__file__).resolve().parents[2]
MARK = "PARAMSERVER_BENCHMARK"
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str((2 << 30) - 1),
    "MALLOC_TOP_PAD_": str(64 << 20),
    "MALLOC_ARENA_MAX": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""What servers of ours set for themselves, and huge pages."""


class Tree:
    """Processes started with `environment`, and their descendants."""

    def __init__(self, *, malloc: bool = True) -> None:
        self._mark = f"{MARK}={uuid.uuid4().hex}"
        name, _, value = self._mark.partition("=")
        self.environment = {name: value, "PYTHONPATH": str(ROOT), **(MALLOC if malloc else {})}

    def pids(self) -> list[int]:
        found = []
        for entry in os.scandir("/proc"):
            if entry.name.isdigit() and self._marked(entry.name):
                found.append(int(entry.name))
        return found

    def freeze(self) -> None:
        """Stop them all at once: whoever waits takes nothing from whoever works, not even heartbeats."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def cpu_s(self) -> float:
        """So far, of those that run."""
        return cpu_s(self.pids())

    def _marked(self, pid: str) -> bool:
        try:
            return f"{self._mark}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False


def machine_busy_s() -> float:
    """CPU time that all processes of the machine have used."""
    fields = [int(one) for one in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    user, nice, system, _idle, _wait, irq, softirq = fields[:7]
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 0


def peak_bytes(pid: int) -> int:
    """The most that was ever resident, or since `forget_peak`."""
    return _status(pid, "VmHWM:")


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _status(pid: int, key: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) << 10
    return 0
