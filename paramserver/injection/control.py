"""The Unix socket on which a harness says what goes wrong in this server.

Each line is a JSON object, each is answered by one, and when the answer comes the fault is in force (a stall begins
right after its answer): `{"op": "disk", "slow_ms": 1000, "full": true, "sync_errors": 1}` (each may be left out),
`{"op": "clock", "jump_s": 3600, "drift": 0.1}`, `{"op": "stall", "seconds": 2, "what": "interpreter" | "loop"}`,
`{"op": "heal"}`, `{"op": "state"}`. Invariants: only the socket's owner may connect; it has a thread of its own, so
that it answers while the loop stands still; every request is in the log. Must not know: what a server is made of.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import logging
import os
import socket
import stat
import threading
import time
from typing import Any

from consensus.storage.interface import FileSystem
from paramserver.injection.clock import DRIFT_MAX, JUMP_S_MAX, ClockFaults
from paramserver.injection.disk import SLOW_MS_MAX, DiskFaults, FaultyFileSystem

log = logging.getLogger("paramserver.injection")

STALL_S_MAX = 60.0
LINE_BYTES_MAX = 1 << 16
BACKLOG = 16
INTERPRETER, LOOP = "interpreter", "loop"


class Injection:
    """Made before the disk is opened. Raises `OSError` when the socket can't be made."""

    def __init__(self, path: str) -> None:
        self.disk = DiskFaults()
        self.clock = ClockFaults()
        self._path = path
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listener = _listen(path)
        self.clock.install()
        log.warning("fault injection is on, by %s: this server is for tests only", path)
        threading.Thread(target=self._serve, name="fault injection", daemon=True).start()

    def filesystem(self, real: FileSystem) -> FileSystem:
        return FaultyFileSystem(real, self.disk)

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """The loop that a stall may hit."""
        self._loop = loop

    def alarm(self) -> str:
        """For people who look at the server's status."""
        state = self.state()
        wrong = [
            f"{name} {state[name]:g}" for name in ("slow_ms", "full", "sync_errors", "jump_s", "drift") if state[name]
        ]
        return f"fault injection is on: this server is for tests only; now: {', '.join(wrong) or 'nothing is wrong'}"

    def close(self) -> None:
        self._listener.close()
        try:
            os.unlink(self._path)
        except OSError:
            pass

    # --- serving

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._converse, args=(connection,), name="fault control", daemon=True).start()

    def _converse(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rb") as lines:
                while line := lines.readline(LINE_BYTES_MAX):
                    after = ""
                    try:
                        request = json.loads(line)
                        answer = {"ok": True, **self._obey(request)}
                        after = request["op"]
                    except (ValueError, KeyError, TypeError) as error:
                        answer = {"ok": False, "error": f"{type(error).__name__}: {error}"}
                    connection.sendall(json.dumps(answer).encode() + b"\n")
                    if after == "stall":
                        self._stall(**{name: value for name, value in request.items() if name != "op"})
        except OSError:
            pass  # the harness went

    def _obey(self, request: dict[str, Any]) -> dict[str, Any]:
        op, what = request["op"], {name: value for name, value in request.items() if name != "op"}
        if op != "state":
            log.warning("fault injection: %s %s", op, what)
        match op:
            case "disk":
                _check("slow_ms", what.get("slow_ms", 0), 0, SLOW_MS_MAX)
                _check("sync_errors", what.get("sync_errors", 0), 0, 1)
                if not isinstance(what.get("full", False), bool):
                    raise ValueError(f"full is {what['full']!r}; expected true or false")
                self.disk.set(**what)
            case "clock":
                _check("jump_s", what.get("jump_s", 0), -JUMP_S_MAX, JUMP_S_MAX)
                _check("drift", what.get("drift", 0), -1, DRIFT_MAX)
                self.clock.set(**what)
            case "stall":
                _check("seconds", what.get("seconds"), 0, STALL_S_MAX)
                if what.get("what") not in (INTERPRETER, LOOP):
                    raise ValueError(f"what is {what.get('what')!r}; expected {INTERPRETER!r} or {LOOP!r}")
            case "heal":
                self.disk.set(slow_ms=0.0, full=False, sync_errors=0)
                self.clock.heal()
            case "state":
                return self.state()
            case other:
                raise ValueError(f"op is {other!r}; expected disk, clock, stall, heal or state")
        return {}

    def state(self) -> dict[str, Any]:
        return {
            "slow_ms": self.disk.slow_ms,
            "full": self.disk.full,
            "sync_errors": self.disk.sync_errors,
            "jump_s": self.clock.jump_s,
            "drift": self.clock.drift,
            "counts": dict(self.disk.counts),
        }

    def _stall(self, *, seconds: float, what: str) -> None:
        if what == LOOP:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(time.sleep, seconds)
            return
        # Through PyDLL the interpreter's lock is kept: no thread of Python's runs meanwhile.
        pause = ctypes.PyDLL(None).usleep
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            pause(ctypes.c_uint(min(999_999, max(1, int(left * 1e6)))))


def _check(name: str, value: Any, least: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ValueError(f"{name} is {value!r}; expected a number from {least:g} to {most:g}")


def _listen(path: str) -> socket.socket:
    """One that an earlier life left behind is replaced."""
    try:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
    except FileNotFoundError:
        pass
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
