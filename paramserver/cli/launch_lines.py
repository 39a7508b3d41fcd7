"""From the bytes of a pipe to whole lines with a prefix.

Invariants: a line is written by one call, so lines of several workers do not mix; one without an end is written once it
is LINE_BYTES_MAX long, so memory is bounded. A carriage return ends a line too: progress bars are seen. Must not know:
processes.
"""

from __future__ import annotations

import re
from typing import BinaryIO

LINE_BYTES_MAX = 1 << 16
_ENDS = re.compile(rb"\r\n|\n|\r(?=.)", re.DOTALL)
"""Not a carriage return at the very end: the other half may come."""


class Lines:
    def __init__(self, prefix: bytes, out: BinaryIO) -> None:
        self._prefix = prefix
        self._out = out
        self._rest = b""

    def feed(self, data: bytes) -> None:
        text, start = self._rest + data, 0
        whole: list[bytes] = []
        for end in _ENDS.finditer(text):
            line = text[start : end.start()]
            start = end.end()
            if line or end.group().endswith(b"\n"):  # a progress bar begins with its carriage return
                whole.append(line)
        self._rest = text[start:]
        while len(self._rest) > LINE_BYTES_MAX:
            whole.append(self._rest[:LINE_BYTES_MAX])
            self._rest = self._rest[LINE_BYTES_MAX:]
        if whole:
            self._write(whole)

    def end(self) -> None:
        """Nothing comes any more."""
        rest, self._rest = self._rest.rstrip(b"\r"), b""
        if rest:
            self._write([rest])

    def _write(self, lines: list[bytes]) -> None:
        self._out.write(b"".join(self._prefix + line + b"\n" for line in lines))
        self._out.flush()
