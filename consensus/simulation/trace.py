"""What happened, as lines for people and as one hash for comparing runs.

Owns the lines. Invariants: every line goes into the hash, also those no longer kept; the text of a line depends on the
seed alone. Must not know: what lines mean.
"""

from __future__ import annotations

from collections import deque

import xxhash

from consensus.simulation.schedule import MS, Scheduler

LINES_MAX = 3000
"""Lines kept; older ones are forgotten, and counted."""


class Trace:
    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._lines: deque[tuple[int, str, str]] = deque(maxlen=LINES_MAX)
        self._hash = xxhash.xxh3_128()
        self._count = 0

    def add(self, who: str, what: str) -> None:
        """`who`: the node, client or part of the network that it happened to."""
        now_us = self._scheduler.now_us
        self._hash.update(f"{now_us} {who} {what}\n".encode())
        self._lines.append((now_us, who, what))
        self._count += 1

    def hash(self) -> str:
        """Equal for two runs exactly when they did the same."""
        return str(self._hash.hexdigest())

    def text(self, lines: int = LINES_MAX) -> str:
        """The last lines, oldest first; times in milliseconds."""
        shown = list(self._lines)[-lines:]
        missing = self._count - len(shown)
        head = [f"... {missing} earlier lines"] if missing else []
        return "\n".join([*head, *(f"{at / MS:11.3f}  {who:<10} {what}" for at, who, what in shown)])
