"""Asking a process of ours over its Unix socket: a JSON object a line, each answered by one.

Owns the harness's end, and where such sockets lie. Invariant: what a call asked for is in force when it returns. Must
not know: what is asked.
"""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Any

from paramserver.lab.errors import LabError

ASK_TIMEOUT_S = 10.0
PATH_BYTES_MAX = 107
"""Of a Unix socket (sun_path)."""


class LineClient:
    """A connection for each question: who is asked may have been started anew."""

    def __init__(self, path: str, what: str) -> None:
        self.path = path
        self._what = what

    def ask(self, request: dict[str, Any], timeout_s: float = ASK_TIMEOUT_S) -> dict[str, Any]:
        """The answer. Raises `LabError` when there is none, or it says no."""
        try:
            line = self._exchange(json.dumps(request).encode() + b"\n", timeout_s)
        except OSError as error:
            raise LabError(f"{self._what} does not answer: {error}", f"its socket: {self.path}") from None
        answer = json.loads(line)
        if not answer.pop("ok", False):
            raise LabError(f"{self._what} refuses {request.get('op')}: {answer.get('error')}", "see its log")
        return dict(answer)

    def _exchange(self, line: bytes, timeout_s: float) -> bytes:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            connection.connect(self.path)
            connection.sendall(line)
            answer = b""
            while not answer.endswith(b"\n"):
                data = connection.recv(1 << 16)
                if not data:
                    raise OSError("it closed the connection")
                answer += data
            return answer


class SocketFolder:
    """Paths for sockets: in `folder` where they fit, else in a short one of their own."""

    def __init__(self, folder: Path) -> None:
        self._own = len(str(folder).encode()) + 32 > PATH_BYTES_MAX
        self.folder = Path(tempfile.mkdtemp(prefix="ps-")) if self._own else folder

    def path(self, name: str) -> str:
        return str(self.folder / f"{name}.socket")

    def close(self) -> None:
        if self._own:
            shutil.rmtree(self.folder, ignore_errors=True)
