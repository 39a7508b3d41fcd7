"""What threads have to tell the host's thread, told together.

Owns the order of what was posted and the one wake-up for all that waits. Invariants: what was posted is called on the
host's thread, in order, each once; what waits when the host looks is told within one input of the node, so that what
several results bring about (answers, appends, proposals) leaves together; what comes meanwhile has its next turn, so
that others get theirs. Must not know: what is told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

Post: TypeAlias = Callable[[Callable[[], None]], Any]
"""`loop.call_soon_threadsafe`: have something run on the loop's thread, soon, in order."""


class Mailbox:
    """`post` may be called from any thread. `together` is set once the node is there to be told."""

    def __init__(self, wake: Post) -> None:
        self._wake = wake
        self._letters: deque[Callable[[], None]] = deque()
        self._woken = False
        self.together: Callable[[], AbstractContextManager[Any]] = nullcontext

    def post(self, letter: Callable[[], None]) -> None:
        """Raises `RuntimeError` when the host's loop is gone."""
        # Put in before looking: a host that is just reading either finds it or has said before that it must be woken.
        self._letters.append(letter)
        if not self._woken:
            self._woken = True
            self._wake_up()

    def _wake_up(self) -> None:
        try:
            self._wake(self._read)
        except BaseException:
            self._woken = False
            raise

    def _read(self) -> None:
        self._woken = False
        try:
            with self.together():
                for _ in range(len(self._letters)):
                    self._letters.popleft()()
        finally:
            if self._letters and not self._woken:
                self._woken = True
                self._wake_up()
