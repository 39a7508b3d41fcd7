"""How long a call may go on, and how long to wait before the next attempt.

Invariants: every call has exactly one `Budget`, made where the user called and handed down; no retry outlives it.
Waits are jittered, so that ranks which lost the same leader do not come back in step, and are cut short by news
(`Routes.changed`): they bound how often a silent cluster is asked, not how fast a change is followed. All attempts of a
client after a failure draw on one `RetryBudget`, so that a client with many groups is no storm. Must not know: what is
being retried.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from worker.errors import DeadlineExceeded, InvalidArgument

TIMEOUT_S = 30.0
"""Default budget of a call."""
TIMEOUT_S_MAX = 86_400.0
"""A longer one is a mistake; waiting on is what a loop around a bounded call is for."""
CLOSE_TIMEOUT_S = 2.0
"""What closing may take: ranks are let go of if group 0 answers in that time, otherwise their leases end by
themselves."""


class Budget:
    """A deadline on the monotonic clock, made once for a call."""

    __slots__ = ("_clock", "_deadline_s", "_what", "timeout_s")

    def __init__(self, timeout_s: float, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        check_timeout(timeout_s, what)
        self.timeout_s = timeout_s
        self._what = what
        self._clock = clock
        self._deadline_s = clock() + timeout_s

    @property
    def remaining_s(self) -> float:
        return max(0.0, self._deadline_s - self._clock())

    @property
    def expired(self) -> bool:
        return self._clock() >= self._deadline_s

    def part(self, longest_s: float) -> float:
        """Timeout of one attempt: never longer than what is left."""
        return min(longest_s, self.remaining_s)

    def exceeded(self, why: str = "") -> DeadlineExceeded:
        return DeadlineExceeded(f"{self._what} was not done within {self.timeout_s:g} s", _HINT, why=why)

    def check(self, why: str = "") -> None:
        """Raise DeadlineExceeded once the budget is used up."""
        if self.expired:
            raise self.exceeded(why)


_HINT = "are the servers up? `paramserver status` says who leads; the call may be made again"


def check_timeout(timeout_s: float, what: str) -> None:
    # NaN fails both comparisons.
    number = isinstance(timeout_s, int | float) and not isinstance(timeout_s, bool)
    if not number or not 0 < timeout_s <= TIMEOUT_S_MAX:
        raise InvalidArgument(
            f"{what}: timeout of {timeout_s!r} s", f"expected more than 0 and at most {TIMEOUT_S_MAX:g} seconds"
        )


@dataclass(frozen=True, slots=True)
class BackoffOptions:
    """`first_ms` doubles up to `most_ms`; each wait is drawn from the upper half of that."""

    first_ms: float = 10.0
    most_ms: float = 250.0

    def validate(self) -> list[str]:
        problems = []
        if not self.first_ms > 0:
            problems.append(f"first_ms {self.first_ms}: expected more than 0")
        if not self.most_ms >= self.first_ms:
            problems.append(f"most_ms {self.most_ms}: expected at least first_ms ({self.first_ms})")
        return problems


RETRIES_PER_S = 50.0
RETRIES_AT_ONCE = 100


class RetryBudget:
    """How often a client asks again, over all it does: `per_s` in the long run, `at_once` after a quiet time. Used on
    the client's event loop only."""

    __slots__ = ("_at_once", "_clock", "_left", "_per_s", "_seen_s")

    def __init__(
        self,
        per_s: float = RETRIES_PER_S,
        at_once: int = RETRIES_AT_ONCE,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """`clock`: seconds; the running loop's when None."""
        self._per_s = per_s
        self._at_once = at_once
        self._clock = clock or _loop_s
        self._left = float(at_once)
        self._seen_s: float | None = None

    def wait_s(self) -> float:
        """Take the next attempt; how long it has to wait."""
        now_s = self._clock()
        if self._seen_s is not None:
            self._left = min(float(self._at_once), self._left + (now_s - self._seen_s) * self._per_s)
        self._seen_s = now_s
        self._left -= 1
        return max(0.0, -self._left / self._per_s)


def _loop_s() -> float:
    return asyncio.get_running_loop().time()


class Backoff:
    """Waits of one sequence of attempts. `reset()` after something worked."""

    __slots__ = ("_budget", "_draw", "_next_ms", "_options")

    def __init__(
        self,
        options: BackoffOptions | None = None,
        draw: Callable[[], float] = random.random,
        budget: RetryBudget | None = None,
    ) -> None:
        """`draw` gives numbers in [0, 1). `budget`: what the client's attempts share."""
        self._options = options or BackoffOptions()
        self._draw = draw
        self._budget = budget
        self._next_ms = self._options.first_ms

    def reset(self) -> None:
        self._next_ms = self._options.first_ms

    def next_s(self, at_least_ms: float = 0.0) -> float:
        """Seconds to wait; at least what the server asked for, which is jittered upwards."""
        wait_ms = self._next_ms * (0.5 + 0.5 * self._draw())
        self._next_ms = min(self._next_ms * 2, self._options.most_ms)
        if at_least_ms > 0:
            wait_ms = max(wait_ms, at_least_ms * (1 + 0.25 * self._draw()))
        wait_s = wait_ms / 1000.0
        return wait_s if self._budget is None else max(wait_s, self._budget.wait_s())
