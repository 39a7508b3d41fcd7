"""Calls to the outside, made only after the state is consistent again.

A callback may call back in (a stream that was admitted offers its next frame at once). So whoever changes state notes
the calls here, and the outermost one makes them, in order, when it is done. Must not know: what is called.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any


class Effects:
    __slots__ = ("_calls", "_flushing")

    def __init__(self) -> None:
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._flushing = False

    def post(self, call: Callable[..., object], *arguments: Any) -> None:
        self._calls.append((call, arguments))

    def flush(self) -> None:
        """Make all calls, also those that they bring about. Within a call it does nothing: the outer flush goes on."""
        if self._flushing:
            return
        self._flushing = True
        try:
            while self._calls:
                call, arguments = self._calls.popleft()
                call(*arguments)
        finally:
            self._flushing = False
