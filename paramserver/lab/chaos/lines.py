"""JSON lines that a load writes and others read while it runs, as in `paramserver.lab.records`.

Invariants: a line is one write, so it survives kill -9 whole or cut; a start after a kill begins a line of its own.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from paramserver.lab.records import WholeLines


class Lines:
    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")

    def write(self, event: str, time_s: float | None = None, **fields: Any) -> None:
        """`time_s` is CLOCK_MONOTONIC (None: now)."""
        line = json.dumps({"event": event, "time": time.monotonic() if time_s is None else time_s, **fields}) + "\n"
        os.write(self._file, line.encode())


class LineTail:
    """Reads a file while it is being written; a line that is not whole yet waits, one that was cut is left out."""

    def __init__(self, path: Path) -> None:
        self._lines = WholeLines(path)

    def read(self) -> list[dict[str, Any]]:
        found = []
        for line in self._lines.read().splitlines():
            try:
                fields = json.loads(line)
            except ValueError:
                continue
            if isinstance(fields, dict) and "event" in fields and "time" in fields:
                found.append(fields)
        return found
