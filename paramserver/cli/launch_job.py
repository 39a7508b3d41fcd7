"""N processes of one command: what they are told, when they start again, how all of it ends.

Invariants: one thread, which waits on pipes and signals and on nothing else; no worker outlives `Job.run`, however it
ends, nor this process, if it is killed (PR_SET_PDEATHSIG; so `run` belongs into the main thread). A worker leads a
session of its own, signals go to the whole of it, and what a worker leaves behind in it is killed when it ends. Starts
beyond the first of each rank are at most `max_restarts` together, and none is made once the job is being stopped. Must
not know: flags, servers, what the command is.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, BinaryIO

from paramserver.cli.launch_lines import Lines

READ_BYTES = 1 << 16
DRAIN_BYTES = 1 << 20
"""What is read at most of an ended worker's pipe, more than a pipe holds: a process that fled its session may hold the
other end for ever."""
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


@dataclass(frozen=True, slots=True)
class JobPlan:
    """`command[0]` is looked up on PATH. `grace_s`: from the signal to end to SIGKILL. `session_folder`: a session file
    a rank is named to workers. `log_folder`: output goes to files there, and not to `out` and `error`."""

    command: tuple[str, ...]
    workers: int
    servers: str
    session_folder: Path
    max_restarts: int
    grace_s: float
    log_folder: Path | None = None

    def environment(self, rank: int, restarts: int, base: Mapping[str, str]) -> dict[str, str]:
        """What worker `rank` sees at its start number `restarts`. Ours and torchrun's names; what else `base` has."""
        count = str(self.workers)
        told = {
            "PARAMSERVER_SERVERS": self.servers,
            "PARAMSERVER_RANK": str(rank),
            "PARAMSERVER_RANKS": count,
            "PARAMSERVER_SESSION": str(self.session_folder.absolute() / f"rank{rank}.session"),
            "RANK": str(rank),
            "WORLD_SIZE": count,
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": count,
            "TORCHELASTIC_RESTART_COUNT": str(restarts),
            "TORCHELASTIC_MAX_RESTARTS": str(self.max_restarts),
        }
        usual = {"PYTHONUNBUFFERED": "1"}  # lines come when they are printed
        if self.workers > 1:
            usual["OMP_NUM_THREADS"] = "1"  # as torchrun: N workers with a thread a core each get in each other's way
        return {**usual, **base, **told}


class Job:
    """Runs once. `say` takes what is to be told of starts and ends, a line at a time."""

    def __init__(self, plan: JobPlan, out: BinaryIO, error: BinaryIO, say: Callable[[str], None]) -> None:
        self._plan = plan
        self._out = out
        self._error = error
        self._say = say
        self._selector = selectors.DefaultSelector()
        self._workers: dict[int, _Worker] = {}
        """Those that run, by rank."""
        self._restarts = [0] * plan.workers
        self._told: list[signal.Signals] = []
        """Signals that we got and shall pass on."""
        self._code: int | None = None
        """What the job ends with, once that is known to be a failure."""
        self._kill_at_s: float | None = None
        """Set when the job is being stopped."""

    def run(self) -> int:
        """Until no worker runs. 0, or the code of the first worker that failed for good, or 128 + the signal that ended
        the job."""
        with self._selector, self._signals():
            try:
                for rank in range(self._plan.workers):
                    self._start(rank)
                pids = ", ".join(str(worker.process.pid) for worker in self._workers.values())
                self._say(f"{self._plan.workers} workers, processes {pids}")
                while self._workers:
                    self._wait()
                    self._pass_on()
                    for worker in [one for one in self._workers.values() if one.ended()]:
                        self._end(worker)
                    if self._kill_at_s is not None and time.monotonic() >= self._kill_at_s:
                        self._kill()
            finally:
                for worker in list(self._workers.values()):
                    worker.kill()
        return self._code or 0

    # --- signals

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """While inside, signals wake the selector. What is ignored stays ignored (nohup, a shell's background)."""
        read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(read, selectors.EVENT_READ, None)
        numbers = [one for one in PASSED_ON if signal.getsignal(one) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._hear) for number in (*numbers, signal.SIGCHLD)}
        wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(read)
            os.close(write)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            self._told.append(signal.Signals(number))

    def _pass_on(self) -> None:
        told, self._told = self._told, []
        for number in told:
            if number == signal.SIGINT and self._kill_at_s is not None:  # somebody is in a hurry
                self._kill()
                continue
            if self._code is None:
                self._code = 128 + number
                hint = ", once more kills them" if number == signal.SIGINT else ""
                self._say(f"{number.name}: passed on to {len(self._workers)} workers{hint}")
            self._stop(number)

    def _stop(self, number: signal.Signals) -> None:
        if self._kill_at_s is None:
            self._kill_at_s = time.monotonic() + self._plan.grace_s
        for worker in self._workers.values():
            worker.signal(number)
            worker.signal(signal.SIGCONT)  # a paused process would never hear the other

    def _kill(self) -> None:
        if not self._workers:
            return
        ranks = ", ".join(str(rank) for rank in self._workers)
        self._say(f"SIGKILL for rank {ranks}")
        for worker in list(self._workers.values()):
            worker.kill()
            self._forget(worker)

    # --- workers

    def _start(self, rank: int) -> None:
        environment = self._plan.environment(rank, self._restarts[rank], os.environ)
        log = None if self._plan.log_folder is None else self._plan.log_folder / f"rank{rank}.log"
        worker = _Worker(rank, self._plan.command, environment, log, self._out, self._error)
        self._workers[rank] = worker
        for pipe in worker.pipes:
            self._selector.register(pipe, selectors.EVENT_READ, (worker, pipe))

    def _wait(self) -> None:
        left = None if self._kill_at_s is None else max(0.0, self._kill_at_s - time.monotonic())
        for key, _ in self._selector.select(left):
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    os.read(key.fd, READ_BYTES)
                continue
            worker, pipe = key.data
            if worker.forward(pipe) == 0:
                self._selector.unregister(pipe)

    def _end(self, worker: _Worker) -> None:
        code = worker.kill()  # it has ended; what it left behind has not
        self._forget(worker)
        if code == 0 or self._kill_at_s is not None:
            return
        how = f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with code {code}"
        how = f"rank {worker.rank} {how} after {time.monotonic() - worker.started_s:.1f} s"
        made = sum(self._restarts)
        if made < self._plan.max_restarts:
            self._restarts[worker.rank] += 1
            self._start(worker.rank)
            pid = self._workers[worker.rank].process.pid
            self._say(f"{how}: restart {made + 1} of {self._plan.max_restarts}, process {pid}")
            return
        self._code = 128 - code if code < 0 else code
        rest = f"stopping {len(self._workers)} others" if self._workers else "nobody else runs"
        self._say(f"{how}: no restart left of {self._plan.max_restarts}, {rest}")
        self._stop(signal.SIGTERM)

    def _forget(self, worker: _Worker) -> None:
        for pipe in worker.pipes:
            with contextlib.suppress(KeyError):
                self._selector.unregister(pipe)
        worker.close()
        del self._workers[worker.rank]


class _Worker:
    """One start of one rank."""

    def __init__(
        self,
        rank: int,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path | None,
        out: BinaryIO,
        error: BinaryIO,
    ) -> None:
        self.rank = rank
        self.started_s = time.monotonic()
        parent = os.getpid()

        def tie() -> None:
            # In the child, before it becomes the command. Ours is a process of one thread, so this is safe.
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)  # it was killed before we asked

        with contextlib.ExitStack() as stack:
            file = None if log is None else stack.enter_context(log.open("ab"))
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if file is None else file,
                stderr=subprocess.PIPE if file is None else subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C is for us: we pass it on
                preexec_fn=tie,
                bufsize=0,
            )
        prefix = f"[{rank}] ".encode()
        self._lines: dict[IO[bytes], Lines] = {
            pipe: Lines(prefix, to)
            for pipe, to in ((self.process.stdout, out), (self.process.stderr, error))
            if pipe is not None
        }
        for pipe in self._lines:
            os.set_blocking(pipe.fileno(), False)

    @property
    def pipes(self) -> tuple[IO[bytes], ...]:
        return tuple(self._lines)

    def forward(self, pipe: IO[bytes]) -> int:
        """What is there now. The number of bytes; 0 at the end."""
        data = os.read(pipe.fileno(), READ_BYTES)
        self._lines[pipe].feed(data)
        return len(data)

    def ended(self) -> bool:
        """Not reaped by this: until it is, nobody else can have its number."""
        if self.process.returncode is not None:
            return True
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def signal(self, number: signal.Signals) -> None:
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)

    def kill(self) -> int:
        """Its whole session, and reap. The exit status, negative for a signal."""
        self.signal(signal.SIGKILL)
        return self.process.wait()

    def close(self) -> None:
        """Forward what is still in the pipes."""
        for pipe, lines in self._lines.items():
            left = DRAIN_BYTES
            with contextlib.suppress(BlockingIOError):
                while left > 0 and (got := self.forward(pipe)):
                    left -= got
            lines.end()
            pipe.close()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
