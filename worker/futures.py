"""What calls that go on by themselves return.

Must not know: what goes on.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from worker.errors import Cancelled, FailedPrecondition, ParameterServerError
from worker.loop import Job, outcome
from worker.retry import Budget

T = TypeVar("T")

GRACE_S = 5.0
"""How much longer than the call's own budget `result()` waits: a bound for what should never happen."""


class Future(Generic[T]):
    """A call in progress. It ends by itself: with its result, an error, or DeadlineExceeded when its budget is used
    up. Any thread may wait for it, and several may.

    Every method raises Forked in a process that forked from the one that made it."""

    def __init__(
        self, job: Job[T], budget: Budget, what: str, why: Callable[[], str], check: Callable[[], None]
    ) -> None:
        self._job = job
        self._budget = budget
        self._what = what
        self._why = why
        self._check = check

    def result(self, timeout: float | None = None) -> T:
        """The result, once it is there.

        timeout: seconds; None: until the call's own budget ends. DeadlineExceeded then, which says what the call is
            waiting for; the call goes on, and `result()` may be asked again while it is not `done()`.

        Raises what the call ended with; DeadlineExceeded; Cancelled (the client was closed meanwhile);
        FailedPrecondition in a callback of this client while the call is not done, for it would wait for itself."""
        self._check()
        if not self._job.done() and self._job.own_thread:
            raise FailedPrecondition(
                f"{self._what} was waited for in a callback", "the thread that calls back does the work: wait elsewhere"
            )
        budget = Budget(self._budget.remaining_s + GRACE_S if timeout is None else timeout, self._what)
        try:
            return outcome(self._job, budget.remaining_s)
        except concurrent.futures.CancelledError:
            raise Cancelled(f"{self._what} was given up", "the client was closed while it ran") from None
        except TimeoutError:
            raise budget.exceeded(self._why()) from None

    def done(self) -> bool:
        """Whether the call has ended, well or not. Returns at once; raises nothing but Forked."""
        self._check()
        return self._job.done()

    def exception(self, timeout: float | None = None) -> ParameterServerError | None:
        """The error the call ended with, or None. Waits, for `timeout` seconds, and raises, as `result` does while the
        call goes on."""
        self._check()
        try:
            self.result(timeout)
        except ParameterServerError as error:
            if not self._job.done():
                raise
            return error
        return None

    def add_done_callback(self, function: Callable[[Future[T]], Any]) -> None:
        """Call `function(self)` when it is done: on the client's own thread, which must not be blocked (push_pull and
        `done()` are fine there, waiting raises FailedPrecondition); or, if it is done already, at once on this thread.
        What `function` raises is logged and nothing else. Raises nothing but Forked."""
        self._check()
        self._job.add_done_callback(lambda _: function(self))


async def settled(future: Future[T]) -> T:
    """The result, on the event loop of the caller. Cancelled, it ends the call and returns when nothing of it runs any
    more."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def tell(_: object) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(done.set)

    future._job.add_done_callback(tell)
    try:
        await done.wait()
    except asyncio.CancelledError:
        future._job.stop()
        while not future._job.done():
            try:
                await done.wait()
            except asyncio.CancelledError:
                continue  # it is at it
        raise
    return future.result()
