"""Writes what a worker did to a file; `paramserver.lab.records` says what the lines mean and reads them.

Invariants: a line is one write, so it is there whole or cut, never mixed; a start after a kill appends, behind a line
of its own.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from paramserver.cli.codes import USAGE, CommandError


class Recorder:
    """Without a path it writes nothing."""

    def __init__(self, path: Path | None) -> None:
        self._file: int | None = None
        if path is None:
            return
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            size = os.fstat(self._file).st_size
            if size and os.pread(self._file, 1, size - 1) != b"\n":
                os.write(self._file, b"\n")
        except OSError as error:
            raise CommandError(f"--record {path}: {error.strerror}", "choose another file", code=USAGE) from None

    def write(self, event: str, time_s: float | None = None, **fields: Any) -> None:
        """`time_s` is CLOCK_MONOTONIC, one clock for all processes of the machine (None: now)."""
        if self._file is not None:
            line = json.dumps({"event": event, "time": time.monotonic() if time_s is None else time_s, **fields}) + "\n"
            os.write(self._file, line.encode())

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
