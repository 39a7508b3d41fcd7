"""CPU seconds and memory of processes, from /proc: a server needs no package for it.

Must not know: what the processes are.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def cpu_s(pids: Iterable[int]) -> float:
    """User and system time so far, all threads; a process that is gone counts nothing."""
    return sum(_cpu_ticks(pid) for pid in pids) / _TICKS_PER_S


def resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return 0


def _cpu_ticks(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    # The command's name stands in parentheses and may hold spaces: fields are counted behind it (man 5 proc: 14 and
    # 15).
    fields = text[text.rfind(")") + 2 :].split()
    return int(fields[11]) + int(fields[12])
