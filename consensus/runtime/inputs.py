"""The boundary of an input: what happens inside one is carried out before it ends.

Owns the nesting. Invariants: only the outermost one settles, and only when nothing was raised in it; an exception that
reaches the outermost is told to `fatal` before it goes on upwards. Must not know: what settling is.

Written as classes because one is entered for every command, message and report.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType

Fatal = Callable[[BaseException], None]


class Input:
    """Used with `with`, nested or again and again. Gives what `running` says."""

    __slots__ = ("_depth", "_running", "_settle", "fatal")

    def __init__(self, *, running: Callable[[], bool], settle: Callable[[], None], fatal: Fatal | None) -> None:
        self._running = running
        self._settle = settle
        self.fatal = fatal
        self._depth = 0

    def __enter__(self) -> bool:
        self._depth += 1
        return self._running()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._depth > 1:
                return
            if error is None:
                self._settle()
            elif isinstance(error, Exception) and self.fatal is not None:
                self.fatal(error)
        except Exception as raised:
            if error is None and self.fatal is not None:
                self.fatal(raised)
            raise
        finally:
            self._depth -= 1


class PartInput:
    """The same, for a part of it that may stop earlier: it gives False then."""

    __slots__ = ("_stopped", "_whole")

    def __init__(self, whole: AbstractContextManager[bool], stopped: Callable[[], bool]) -> None:
        self._whole = whole
        self._stopped = stopped

    def __enter__(self) -> bool:
        return self._whole.__enter__() and not self._stopped()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._whole.__exit__(kind, error, trace)
