"""A coroutine under a budget."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from worker.retry import Budget

T = TypeVar("T")


async def within(budget: Budget, work: Coroutine[Any, Any, T], why: Callable[[], str]) -> T:
    """The result of `work`; DeadlineExceeded, with what `why` says at that moment, once the budget is used up."""
    try:
        async with asyncio.timeout(budget.remaining_s):
            return await work
    except TimeoutError:
        raise budget.exceeded(why()) from None
