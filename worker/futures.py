"""What `push_pull` returns."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from worker.errors import Cancelled, ParameterServerError
from worker.loop import outcome
from worker.retry import Budget

T = TypeVar("T")

GRACE_S = 5.0
"""How much longer than the call's own budget `result()` waits: a bound for what should never happen."""


class Future(Generic[T]):
    """A call in progress. It ends by itself: with its result, an error, or DeadlineExceeded when its budget is used
    up."""

    def __init__(self, inner: concurrent.futures.Future[T], budget: Budget, what: str, why: Callable[[], str]) -> None:
        self._inner = inner
        self._budget = budget
        self._what = what
        self._why = why

    def result(self, timeout: float | None = None) -> T:
        """The result. After `timeout` seconds (None: when the call's own budget ends) DeadlineExceeded, which says what
        the call is waiting for; it goes on, and `result()` may be called again while it is not `done()`."""
        budget = Budget(self._budget.remaining_s + GRACE_S if timeout is None else timeout, self._what)
        try:
            return outcome(self._inner, budget.remaining_s)
        except concurrent.futures.CancelledError:
            raise Cancelled(f"{self._what} was given up", "the client was closed while it ran") from None
        except TimeoutError:
            raise budget.exceeded(self._why()) from None

    def done(self) -> bool:
        return self._inner.done()

    def exception(self, timeout: float | None = None) -> ParameterServerError | None:
        """The error the call ended with, or None. Waits as `result` does."""
        try:
            self.result(timeout)
        except ParameterServerError as error:
            if not self._inner.done():
                raise
            return error
        return None

    def add_done_callback(self, function: Callable[[Future[T]], Any]) -> None:
        """Call `function(self)` when it is done, on the client's thread: it must not block."""
        self._inner.add_done_callback(lambda _: function(self))
