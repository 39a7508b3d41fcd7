"""Processes that stand for other machines, and must not take the servers' CPU time.

Must not know: what they do.
"""

from __future__ import annotations

import os
from pathlib import Path

NICE = 19
_GROUP = Path("/proc/self/autogroup")


def yield_to_servers() -> None:
    """This process, all threads, runs when no server wants to. Where the kernel shares the CPUs out between sessions
    first (`sched_autogroup`), a nice value counts within a session only, and each child of the lab is one of its own
    (man 7 sched): so that of the session is set, too."""
    os.nice(NICE)
    try:
        _GROUP.write_text(str(NICE))
    except OSError:
        pass  # There are no such groups.
