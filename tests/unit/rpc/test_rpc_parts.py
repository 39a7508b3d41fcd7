"""Small parts of the services: who leads what, announcements, counters, loop lag."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from consensus.core.interface import Configuration
from paramserver.observe.counters import Counters
from paramserver.observe.lag import WINDOW, LoopLag
from paramserver.rpc import watch
from paramserver.rpc.groups import Groups, Hosted
from paramserver.rpc.pull import Wanted, checked
from paramserver.rpc.watch import Board, Leads
from paramserver.wire.errors import Reason, Refusal

LAYOUT = {0: Configuration((1, 2, 3)), 1: Configuration((1, 2, 3)), 4: Configuration((2, 3, 4))}
ADDRESSES = {node: f"h:{node}" for node in range(1, 5)}


class Handle:
    def __init__(self, node: int, term: int) -> None:
        self.known = (node, node, term)

    def leader(self) -> tuple[int, int, int]:
        return self.known


def groups(leader: int, term: int = 3) -> Groups:
    made = Groups(node=1, addresses=ADDRESSES, layout=LAYOUT)
    handle: Any = Handle(leader, term)
    made.hosted[1] = Hosted(1, 1, handle, None)
    return made


def test_elsewhere_names_the_leader_and_its_term() -> None:
    refusal = groups(2).elsewhere(1)
    assert (refusal.reason, refusal.leader_address, refusal.group, refusal.term) == (Reason.NOT_LEADER, "h:2", 1, 3)


def test_elsewhere_without_a_leader_says_so() -> None:
    refusal = groups(0).elsewhere(1)
    assert (refusal.reason, refusal.leader_address) == (Reason.NOT_LEADER, "")
    assert "no leader" in refusal.message
    assert refusal.hint


def test_elsewhere_at_a_leader_that_cannot_judge_yet() -> None:
    assert groups(1).elsewhere(1).reason is Reason.NOT_READY


def test_a_group_that_is_not_hosted_here_is_asked_for_at_its_voters() -> None:
    known = groups(2)
    assert known.candidates(4) == [2, 3, 4]
    known.announced(4, term=5, node=3)
    known.announced(4, term=4, node=2)
    assert known.candidates(4) == [3, 2, 4]
    assert known.elsewhere(4).leader_address == "h:3"


def test_a_subscriber_hears_what_is_led_now_and_each_change() -> None:
    board = Board()
    board.leading(1, 2)
    board.leading(3, 2)
    board.deposed(3)
    subscriber = board.subscribe()
    assert list(subscriber.pending.values()) == [Leads(1, 2)]
    board.leading(2, 9)
    assert list(subscriber.pending.values()) == [Leads(1, 2), Leads(2, 9)]


def test_a_slow_subscriber_holds_one_announcement_a_group() -> None:
    board = Board()
    subscriber = board.subscribe()
    for term in range(100):
        board.leading(1, term)
    assert list(subscriber.pending.values()) == [Leads(1, 99)]


def test_subscribers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "SUBSCRIBERS_MAX", 2)
    board = Board()
    first = board.subscribe()
    board.subscribe()
    with pytest.raises(Refusal) as caught:
        board.subscribe()
    assert caught.value.reason is Reason.BUSY
    board.unsubscribe(first)
    board.subscribe()


@pytest.mark.parametrize(
    ("fields", "field"),
    [({"version": 2**62}, "version"), ({"blocks": (1, 1)}, "blocks[1]"), ({"blocks": (0, 2, 1)}, "blocks[2]")],
)
def test_pulls_are_checked_in_form(fields: dict[str, Any], field: str) -> None:
    usual: dict[str, Any] = {"blocks": (), "version": 0, "exact": True}
    with pytest.raises(Refusal) as caught:
        checked(Wanted(group=1, model=1, generation=1, placement_epoch=1, **{**usual, **fields}))
    assert caught.value.field == field


def test_counters_of_other_rooms_are_added_up() -> None:
    counters = Counters()
    counters.add("refused_busy", 2)
    for _ in range(2):
        counters.include("", lambda: {"pushes_taken": 3})
    counters.include("peers_", lambda: {"lost": 1})
    assert counters.all() == {"refused_busy": 2, "pushes_taken": 6, "peers_lost": 1}


def test_loop_lag_keeps_its_worst_and_a_window(caplog: pytest.LogCaptureFixture) -> None:
    lag = LoopLag()
    lag.sample(500.0)
    for _ in range(WINDOW):
        lag.sample(1.0)
    assert lag.gauges() == {
        "loop_lag_ms_max": 500.0,
        "loop_lag_ms_max_1m": 1.0,
        "loop_lag_ms_p50_1m": 1.0,
        "loop_lag_ms_p99_1m": 1.0,
        "loop_lag_ms_mean_1m": 1.0,
    }
    assert "500 ms late" in caplog.text


def test_loop_lag_says_how_often_it_was_how_late() -> None:
    lag = LoopLag()
    for lag_ms in [0.2] * 90 + [3.0] * 9 + [700.0]:
        lag.sample(lag_ms)
    assert lag.gauges()["loop_lag_ms_p50_1m"] == 0.2
    assert lag.gauges()["loop_lag_ms_p99_1m"] == 700.0
    assert lag.counts() == {
        "le_1_ms": 90,
        "le_2_ms": 90,
        "le_5_ms": 99,
        "le_10_ms": 99,
        "le_20_ms": 99,
        "le_50_ms": 99,
        "le_100_ms": 99,
        "le_200_ms": 99,
        "le_500_ms": 99,
        "samples": 100,
    }


def test_loop_lag_is_measured() -> None:
    async def busy() -> LoopLag:
        lag = LoopLag()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(lag.run(), 0.1)
        return lag

    assert asyncio.run(busy()).gauges()["loop_lag_ms_max"] > 0
