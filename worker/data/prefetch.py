"""Makes what the next steps need while this one is computed.

One thread makes values for steps first, first + 1, ... in this order, a bounded number ahead. Invariants: `get(step)`
gives what `make(step)` gives, whatever the timing; what `make` raises is raised by `get` of that step; after `close`,
which `with` calls on any way out, the thread is gone. Must not know: what is made.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")

AHEAD = 4
"""Values that wait to be taken or are being made, at most."""
LOOK_S = 0.5
"""So often a thread that waits looks whether Ctrl-C came (see worker/loop.py)."""


class Prefetch(Generic[T]):
    """`with Prefetch(make, first, last) as values: values.get(first)`. For steps from first to last - 1; `get` by one
    thread, in order."""

    def __init__(self, make: Callable[[int], T], first: int, last: int, ahead: int = AHEAD) -> None:
        if ahead < 1:
            raise ValueError(f"ahead {ahead}: expected at least 1")
        self._make, self._next, self._last, self._ahead = make, first, last, ahead
        self._ready: deque[tuple[int, T]] = deque()
        self._error: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, args=(first,), name="prefetch", daemon=True)
        self._thread.start()

    def get(self, step: int) -> T:
        """Waits for it. Raises what `make` raised, ValueError for a step that is not the next one."""
        with self._changed:
            if step != self._next or step >= self._last:
                raise ValueError(f"step {step}: the next is {self._next}, the last {self._last - 1}")
            while not self._ready:
                if self._error is not None:
                    raise self._error
                if self._closed:
                    raise ValueError("closed")
                self._changed.wait(LOOK_S)
            made, value = self._ready.popleft()
            if made != step:
                raise AssertionError(f"step {made} stands where step {step} belongs")
            self._next += 1
            self._changed.notify_all()
            return value

    def close(self) -> None:
        """A second call does nothing. Waits for a `make` that is under way."""
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> Prefetch[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, step: int) -> None:
        while step < self._last:
            with self._changed:
                while len(self._ready) >= self._ahead and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
            try:
                value = self._make(step)
            except BaseException as error:
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return
            with self._changed:
                if not self._closed:
                    self._ready.append((step, value))
                self._changed.notify_all()
            step += 1
