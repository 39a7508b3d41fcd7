"""The background thread of a client: one asyncio event loop that all its streams run on.

Invariants: coroutines reach the loop only through `submit`; after `stop` nothing runs any more and `submit` raises
Closed. Must not know: what runs on it.
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


class LoopThread:
    """`submit(coroutine)` from any thread but its own."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._stopped = False
        # A daemon: a training script that ends without close() must not hang on it.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        with self._lock:
            if self._stopped:
                coroutine.close()
                raise Closed("the client is closed", "connect() again")
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

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
