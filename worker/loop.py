"""The background thread of a client: one asyncio event loop that all its streams run on.

Invariants: coroutines reach the loop only through `submit`; a `Job` is done only when nothing of its coroutine runs any
more; after `stop` nothing runs at all and `submit` raises Closed. Must not know: what runs on it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
import threading
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from worker.errors import Closed

T = TypeVar("T")

STOP_TIMEOUT_S = 5.0
LOOK_S = 0.5
"""So often a thread that waits looks whether Ctrl-C came. A signal between CPython's last look and the system call that
waits does not end that wait; on a busy machine one in some hundreds does so."""


def outcome(future: concurrent.futures.Future[T], timeout_s: float = math.inf) -> T:
    """What `future` ends with. Raises TimeoutError, and KeyboardInterrupt within `LOOK_S`."""
    deadline = time.monotonic() + timeout_s
    while True:
        left_s = deadline - time.monotonic()
        try:
            return future.result(max(0.0, min(left_s, LOOK_S)))
        except TimeoutError:
            if future.done():
                return future.result()
            if left_s <= LOOK_S:
                raise


class Job(concurrent.futures.Future[T]):
    """A coroutine on its way; ends with its result or its error, or with CancelledError after `stop`."""

    def __init__(self, thread: LoopThread, coroutine: Coroutine[Any, Any, T], awaits: Coroutine[Any, Any, Any]) -> None:
        super().__init__()
        self._thread = thread
        self._coroutine = coroutine
        self._awaits = awaits
        self._task: asyncio.Task[T] | None = None
        self.set_running_or_notify_cancel()  # `cancel()` would say that it is done while it still runs

    @property
    def own_thread(self) -> bool:
        """Whether the caller stands on the thread that has to do the work: it must not wait for it."""
        return self._thread.inside

    def stop(self) -> None:
        """End it. It is done a little later, when it has ended."""
        self._thread.call_soon(self._cancel)

    def begin(self) -> None:
        """On the loop."""
        self._task = asyncio.get_running_loop().create_task(self._coroutine)
        self._task.add_done_callback(self._ended)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _ended(self, task: asyncio.Task[T]) -> None:
        self._awaits.close()  # nobody did, if it was stopped before it began
        if task.cancelled():
            self.set_exception(concurrent.futures.CancelledError())
        elif (error := task.exception()) is not None:
            self.set_exception(error)
        else:
            self.set_result(task.result())


class LoopThread:
    """`submit(coroutine)` from any thread."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._stopped = False
        # A daemon: a training script that ends without close() must not hang on it.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def inside(self) -> bool:
        """Whether the caller stands on this thread."""
        return threading.current_thread() is self._thread

    def submit(self, coroutine: Coroutine[Any, Any, T], awaits: Coroutine[Any, Any, Any] | None = None) -> Job[T]:
        """`awaits`: a coroutine that `coroutine` is to await: it is closed, should it come to nothing."""
        job = Job(self, coroutine, awaits or coroutine)
        if not self.call_soon(job.begin):
            coroutine.close()
            job._awaits.close()
            raise Closed("the client is closed", "connect() again")
        return job

    def call_soon(self, function: Any) -> bool:
        """Call it on the loop; False, and it is not called, once the thread was stopped."""
        with self._lock:
            if self._stopped:
                return False
            self._loop.call_soon_threadsafe(function)
            return True

    def stop(self) -> None:
        """End every task and the thread."""
        with self._lock:
            if self._stopped:
                return
            self._stopped = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STOP_TIMEOUT_S)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()
