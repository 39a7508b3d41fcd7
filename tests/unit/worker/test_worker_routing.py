"""Routes (RULES C7), back-off and budgets."""

from __future__ import annotations

import asyncio

import pytest

from worker.errors import DeadlineExceeded, InvalidArgument
from worker.retry import Backoff, BackoffOptions, Budget, RetryBudget
from worker.routing import Route, Routes


def test_the_highest_term_is_followed_and_older_news_changes_nothing() -> None:
    routes = Routes()
    assert routes.learn(group=1, term=3, address="a:1", node=1)
    assert not routes.learn(group=1, term=2, address="b:1", node=2)
    assert routes.get(1) == Route(1, 3, "a:1", 1)
    assert routes.learn(group=1, term=4, address="b:1", node=2)
    assert routes.get(1) == Route(1, 4, "b:1", 2)


def test_an_announcement_of_the_same_term_clears_suspicion() -> None:
    """The leader's connection broke and stands again; it still leads."""
    routes = Routes()
    routes.learn(group=1, term=3, address="a:1", node=1)
    route = routes.get(1)
    assert route is not None
    routes.suspect(route)
    assert routes.get(1) == Route(1, 3, "a:1", 1, suspect=True)
    assert routes.learn(group=1, term=3, address="a:1", node=1)
    assert routes.get(1) == route


def test_suspicion_of_an_older_route_does_not_touch_a_newer_one() -> None:
    routes = Routes()
    routes.learn(group=1, term=3, address="a:1")
    old = routes.get(1)
    routes.learn(group=1, term=4, address="b:1")
    assert old is not None
    routes.suspect(old)
    assert routes.get(1) == Route(1, 4, "b:1")


def test_hearsay_of_the_term_already_known_changes_nothing() -> None:
    """Two nodes that name each other must not send a worker in circles."""
    routes = Routes()
    routes.learn(group=1, term=3, address="a:1")
    assert not routes.hint(group=1, term=3, address="b:1")
    assert routes.hint(group=1, term=4, address="b:1")
    assert not routes.hint(group=1, term=5, address="")


def test_an_announcement_corrects_hearsay_of_its_term() -> None:
    routes = Routes()
    routes.hint(group=1, term=3, address="wrong:1")
    assert routes.learn(group=1, term=3, address="right:1", node=2)
    assert routes.get(1) == Route(1, 3, "right:1", 2)


def test_waiting_ends_with_the_news() -> None:
    async def scenario() -> None:
        routes = Routes()
        routes.learn(group=1, term=3, address="a:1")
        route = routes.get(1)
        assert route is not None
        moved = asyncio.ensure_future(routes.moved(route))
        news = asyncio.ensure_future(routes.changed(1, 5.0))
        await asyncio.sleep(0)
        assert not moved.done()
        routes.learn(group=2, term=9, address="c:1")
        routes.learn(group=1, term=4, address="b:1")
        assert await news
        assert (await moved).address == "b:1"
        assert not await routes.changed(1, 0.001)

    asyncio.run(scenario())


def test_backoff_doubles_up_to_its_bound_and_is_jittered() -> None:
    low = Backoff(BackoffOptions(first_ms=10, most_ms=40), draw=lambda: 0.0)
    assert [low.next_s() for _ in range(4)] == [0.005, 0.010, 0.020, 0.020]
    high = Backoff(BackoffOptions(first_ms=10, most_ms=40), draw=lambda: 1.0)
    assert [high.next_s() for _ in range(4)] == [0.010, 0.020, 0.040, 0.040]
    high.reset()
    assert high.next_s() == 0.010
    assert low.next_s(at_least_ms=100) == 0.1


def test_backoff_options_report_all_problems() -> None:
    assert len(BackoffOptions(first_ms=0, most_ms=-1).validate()) == 2
    assert BackoffOptions().validate() == []


def test_a_budget_counts_down_and_bounds_every_attempt() -> None:
    now = [10.0]
    budget = Budget(2.0, "a call", clock=lambda: now[0])
    assert budget.part(5.0) == 2.0
    now[0] += 1.5
    assert budget.part(5.0) == 0.5
    budget.check()
    now[0] += 1.0
    assert budget.expired
    with pytest.raises(DeadlineExceeded, match=r"a call was not done within 2 s \(no leader\)"):
        budget.check("no leader")


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), 10 * 365 * 86_400])
def test_a_timeout_that_is_none_is_refused(timeout: float) -> None:
    """FAULTS bad input 15: no deadline, or one of ten years."""
    with pytest.raises(InvalidArgument, match="timeout"):
        Budget(timeout, "a call")


def test_all_attempts_of_a_client_share_one_budget() -> None:
    """FAULTS 29: many groups that fail at once are not many times the storm."""
    now = [0.0]
    budget = RetryBudget(per_s=10, at_once=3, clock=lambda: now[0])
    assert [budget.wait_s() for _ in range(5)] == [0, 0, 0, 0.1, 0.2]
    now[0] += 0.2
    assert budget.wait_s() == pytest.approx(0.1)
    now[0] += 3600
    assert [budget.wait_s() for _ in range(4)] == [0, 0, 0, 0.1], "a quiet hour saves up no more than a few"


def test_a_wait_is_the_longest_of_back_off_the_servers_wish_and_the_budget() -> None:
    budget = RetryBudget(per_s=1, at_once=1, clock=lambda: 0.0)
    options = BackoffOptions(first_ms=10, most_ms=10)
    one, other = (Backoff(options, draw=lambda: 1.0, budget=budget) for _ in range(2))
    assert one.next_s() == 0.01
    assert other.next_s() == 1.0
    assert one.next_s(at_least_ms=8000) == 10.0
