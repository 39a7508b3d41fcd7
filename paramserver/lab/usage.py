"""CPU seconds and memory of processes, from /proc: a server needs no package for it.

Must not know: what the processes are.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from paramserver.observe.process import descriptors, resident_bytes

__all__ = ["cpu_s", "descriptors", "resident_bytes"]

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(pids: Iterable[int]) -> float:
    """User and system time so far, all threads; a process that is gone counts nothing."""
    return sum(_cpu_ticks(pid) for pid in pids) / _TICKS_PER_S


def _cpu_ticks(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    # The command's name stands in parentheses and may hold spaces: fields are counted behind it (man 5 proc: 14 and
    # 15).
    fields = text[text.rfind(")") + 2 :].split()
    return int(fields[11]) + int(fields[12])
