"""Asking a process of ours over its Unix socket: a JSON object a line, each answered by one.

Owns the harness's end, and where such sockets lie. Invariant: what a call asked for is in force when it returns. Must
not know: what is asked.
"""

from __future__ import annotations

import json
import secrets
import shutil
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any

from paramserver.lab.errors import LabError

ASK_TIMEOUT_S = 10.0
PATH_BYTES_MAX = 107
"""Of a Unix socket (sun_path)."""


class LineClient:
    """Connects when it is first asked; one question at a time."""

    def __init__(self, path: str, what: str) -> None:
        self.path = path
        self._what = what
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()

    def ask(self, request: dict[str, Any], timeout_s: float = ASK_TIMEOUT_S) -> dict[str, Any]:
        """The answer. Raises `LabError` when there is none, or it says no."""
        with self._lock:
            try:
                line = self._exchange(json.dumps(request).encode() + b"\n", timeout_s)
            except OSError as error:
                self._drop()
                raise LabError(f"{self._what} does not answer: {error}", f"its socket: {self.path}") from None
        answer = json.loads(line)
        if not answer.pop("ok", False):
            raise LabError(f"{self._what} refuses {request.get('op')}: {answer.get('error')}", "see its log")
        return dict(answer)

    def _exchange(self, line: bytes, timeout_s: float) -> bytes:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.settimeout(timeout_s)
            self._socket.connect(self.path)
        self._socket.settimeout(timeout_s)
        self._socket.sendall(line)
        answer = b""
        while not answer.endswith(b"\n"):
            data = self._socket.recv(1 << 16)
            if not data:
                raise OSError("it closed the connection")
            answer += data
        return answer

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def close(self) -> None:
        with self._lock:
            self._drop()


class SocketFolder:
    """Paths for sockets: in `folder` where they fit, else in a short one of their own."""

    def __init__(self, folder: Path) -> None:
        self._own = len(str(folder).encode()) + 32 > PATH_BYTES_MAX
        self.folder = Path(tempfile.mkdtemp(prefix="ps-")) if self._own else folder

    def new(self, name: str) -> str:
        """Never one that was there before."""
        return str(self.folder / f"{name}-{secrets.token_hex(4)}.sock")

    def close(self) -> None:
        if self._own:
            shutil.rmtree(self.folder, ignore_errors=True)
