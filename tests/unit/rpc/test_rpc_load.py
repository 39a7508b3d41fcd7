"""What a node counts of what it does for clients."""

from __future__ import annotations

from paramserver.observe.load import NAMES, WINDOW_S, Load, Rates


def test_counts_are_kept_by_group() -> None:
    load = Load()
    load.of(1).pushes += 2
    load.of(2).pulled_bytes += 7
    assert (load.of(1).pushes, load.of(1).pulled_bytes, load.of(2).pulled_bytes) == (2, 0, 7)


def test_rates_are_of_the_last_seconds() -> None:
    load = Load()
    assert load.rates(1) == Rates()
    for second in range(30):
        load.of(1).pushes += 10 if second < 15 else 3
        load.of(1).pushed_bytes += 1000
        load.sample(100.0 + second)
        if second == 14:
            assert load.rates(1).pushes == 10.0
    assert load.rates(1) == Rates(pushes=3.0, pushed_bytes=1000.0)
    for second in range(WINDOW_S):
        load.sample(130.0 + second)
    assert load.rates(1) == Rates(), "nothing for a whole window"
    assert load.rates(7) == Rates()


def test_a_group_that_came_within_the_window_counts_from_nothing() -> None:
    load = Load()
    load.sample(0.0)
    load.of(4).pulls += 30
    load.sample(3.0)
    assert load.rates(4).pulls == 10.0
    assert len(NAMES) == 5
