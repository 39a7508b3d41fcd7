"""An asyncio event loop on virtual time, so that asynchronous parts of a process run in the simulator as they are.

Owns the callbacks that one simulated process has ready. Invariants: a loop runs only inside an event of its process, so
a process that is paused or gone runs nothing; callbacks run in the order in which they were made ready; tasks and
futures hash by their number, so that sets of them are walked in the same order in every run. Must not know: what runs
on it. Sockets, threads, signals and processes are not offered.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Context
from typing import Any

from consensus.simulation.errors import Violated

CLOSING_ROUNDS = 3
"""A task may wait for another one when it is told to end."""


class _Numbered:
    """Hashes by a number that its loop gives."""

    _number: int

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class _Future(_Numbered, asyncio.Future[Any]):
    def __init__(self, *, loop: VirtualLoop) -> None:
        self._number = loop.number()
        super().__init__(loop=loop)


class _Task(_Numbered, asyncio.Task[Any]):
    def __init__(self, coroutine: Coroutine[Any, Any, Any], *, loop: VirtualLoop, name: str | None) -> None:
        # Registered, by hash, in the constructor.
        self._number = loop.number()
        super().__init__(coroutine, loop=loop, name=name)


class VirtualLoop(asyncio.AbstractEventLoop):
    """`later(delay_us, action)` runs an action as an event of the process, unless that life of it is over."""

    def __init__(self, later: Callable[[int, Callable[[], None]], None], now_us: Callable[[], int]) -> None:
        self._later = later
        self._now_us = now_us
        self._ready: deque[asyncio.Handle] = deque()
        self._due = False
        self._count = 0
        self._tasks: dict[_Task, None] = {}
        self.problems: list[BaseException | str] = []
        """What tasks ended with and nobody looked at."""

    def number(self) -> int:
        self._count += 1
        return self._count

    @contextmanager
    def running(self) -> Iterator[None]:
        """For code of the process that an event runs directly: it may make tasks."""
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            yield
        finally:
            asyncio._set_running_loop(before)

    def _run_ready(self) -> None:
        self._due = False
        with self.running():
            while self._ready:
                handle = self._ready.popleft()
                if not handle.cancelled():
                    handle._run()
        if self.problems:
            problem = self.problems[0]
            raise Violated(f"a task failed: {problem!r}") from (problem if isinstance(problem, BaseException) else None)

    def _wake(self, handle: asyncio.Handle) -> None:
        self._ready.append(handle)
        if not self._due:
            self._due = True
            self._later(0, self._run_ready)

    def close(self) -> None:
        """The simulation is over: end what still waits, here and now and not when the collector finds it."""
        self._later = _never
        with self.running():
            for _ in range(CLOSING_ROUNDS):
                for task in list(self._tasks):
                    task.cancel()
                while self._ready:
                    self._ready.popleft()._run()
        self.problems.clear()

    # --- AbstractEventLoop, as far as it makes sense here

    def time(self) -> float:
        return self._now_us() / 1_000_000

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def get_debug(self) -> bool:
        return False

    def call_soon(  # type: ignore[override]
        self, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._wake(handle)
        return handle

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        delay_us = max(0, round(when * 1_000_000) - self._now_us())

        def due() -> None:
            if not handle.cancelled():
                self._ready.append(handle)
                self._run_ready()

        self._later(delay_us, due)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        return None

    def create_future(self) -> asyncio.Future[Any]:
        return _Future(loop=self)

    def create_task(
        self, coro: Any, *, name: str | None = None, context: Context | None = None, **rest: Any
    ) -> asyncio.Task[Any]:
        task = _Task(coro, loop=self, name=name)
        self._tasks[task] = None
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: Any) -> None:
        self._tasks.pop(task, None)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """A task that was dropped with its process is no finding; one that failed unseen is."""
        if "exception" in context:
            self.problems.append(context["exception"])


def _never(_delay_us: int, _action: Callable[[], None]) -> None:
    return None


def virtual_loop(later: Callable[[int, Callable[[], None]], None], now_us: Callable[[], int]) -> VirtualLoop:
    """See `VirtualLoop`; what it leaves out of an event loop raises NotImplementedError."""
    return VirtualLoop(later, now_us)  # type: ignore[abstract]
