"""One child process: its log file, its signals, its end.

Invariants: no child outlives this process, however it ends: `atexit` kills and reaps, and the kernel sends SIGKILL to
children whose parent thread is gone (PR_SET_PDEATHSIG, set in the child itself before it becomes the command). So
start processes from a thread that lives as long as they should: the main one. Standard output and error go to one log
file, which survives. Must not know: servers or workers.
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

from paramserver.lab.errors import Died, NotReady

POLL_S = 0.005
LOG_TAIL_LINES = 8
TERMINATE_TIMEOUT_S = 10.0

# Runs in the child: ask for SIGKILL when the parent goes, check that it did not go before we asked, become the command.
_BECOME = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
os.execv(sys.argv[2], sys.argv[2:])
"""

_living: weakref.WeakSet[Child] = weakref.WeakSet()


class Child:
    """A command that can be started, killed, paused and started again. Its log is appended to."""

    def __init__(
        self, name: str, command: Sequence[str], log: Path, *, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.command = tuple(command)
        self.log = log
        self.started_s = 0.0
        """`time.monotonic()` of the latest start."""
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    # --- state

    @property
    def pid(self) -> int:
        """Of the latest start; 0 before the first."""
        return self._process.pid if self._process is not None else 0

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def code(self) -> int | None:
        """Exit status of the latest start, negative for a signal; None while it runs and before the first start."""
        return None if self._process is None else self._process.poll()

    def output(self) -> str:
        """What the latest start wrote so far."""
        try:
            with self.log.open("rb") as file:
                file.seek(self._log_start)
                return file.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return ""

    def last_words(self) -> str:
        lines = [line for line in self.output().splitlines() if line.strip()]
        return "\n".join(lines[-LOG_TAIL_LINES:]) or "(it wrote nothing)"

    # --- acts

    def start(self) -> None:
        if self.running:
            raise ValueError(f"{self.name} runs already")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **self._environment}
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self.started_s = time.monotonic()
            # Ctrl-C between the child's birth and our knowing of it would leave it to the kernel to end it.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                self._process = subprocess.Popen(
                    # -I -S: the go-between needs no packages and costs about 10 ms.
                    [sys.executable, "-I", "-S", "-c", _BECOME, str(os.getpid()), *self.command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,  # Ctrl-C is for us: we end our children in order
                )
                _living.add(self)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def kill(self) -> float:
        """kill -9, and reap. Returns the time (`time.monotonic()`) of the signal."""
        at_s = time.monotonic()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        return at_s

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def interrupt(self) -> None:
        self._signal(signal.SIGINT)

    def terminate(self, timeout_s: float = TERMINATE_TIMEOUT_S) -> int:
        """SIGTERM; kill -9 when that is not heard in time. Returns the exit status."""
        if self._process is None:
            return 0
        if self.running:
            self._signal(signal.SIGCONT)  # a paused process would never hear the other
            self._signal(signal.SIGTERM)
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.wait()

    def wait(self, timeout_s: float) -> int:
        """The exit status; NotReady when it does not end in time."""
        if self._process is None:
            raise ValueError(f"{self.name} was never started")
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise NotReady(
                f"{self.name} did not end within {timeout_s:g} s",
                f"log {self.log}; its last words:\n{self.last_words()}",
            ) from None

    def await_line(self, prefix: str, timeout_s: float) -> str:
        """The first line of output of this start that begins with `prefix`."""
        deadline = time.monotonic() + timeout_s
        while True:
            running = self.running  # asked first: what a process wrote before it ended is still read
            for line in self.output().splitlines(keepends=True):
                if line.startswith(prefix) and line.endswith("\n"):
                    return line.rstrip("\n")
            if not running:
                raise Died(
                    f"{self.name} ended with {self.code} before it said {prefix.strip()!r}",
                    f"log {self.log}; its last words:\n{self.last_words()}",
                    code=self.code or 0,
                )
            if time.monotonic() > deadline:
                raise NotReady(
                    f"{self.name} did not say {prefix.strip()!r} within {timeout_s:g} s",
                    f"log {self.log}; its last words:\n{self.last_words()}",
                )
            time.sleep(POLL_S)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self.running:
            self._process.send_signal(number)


def _reap_all() -> None:
    for child in list(_living):
        child.kill()


atexit.register(_reap_all)
