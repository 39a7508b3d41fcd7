"""Batches made ahead: bounded, in order, and without a trace once it is closed."""

from __future__ import annotations

import threading
import time

import pytest

from worker.data.prefetch import Prefetch


def left() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "prefetch"]


def test_values_come_in_order_whoever_is_slow() -> None:
    def slow(step: int) -> int:
        # Both sides take turns at being the one that is waited for: these are times that things take.
        time.sleep(0.002 * (step % 3))
        return step * step

    with Prefetch(slow, 3, 20, ahead=2) as ahead:
        for step in range(3, 20):
            time.sleep(0.002 * (step % 2))
            assert ahead.get(step) == step * step
        with pytest.raises(ValueError, match="step 20"):
            ahead.get(20)
    assert left() == []


def test_no_more_are_made_than_are_allowed_to_wait() -> None:
    full, beyond = threading.Event(), threading.Event()

    def make(step: int) -> int:
        if step >= 3:
            (full if step == 3 else beyond).set()
        return step

    with Prefetch(make, 0, 100, ahead=3) as ahead:
        assert ahead.get(0) == 0
        assert full.wait(10)
        assert not beyond.wait(0.05)
        assert ahead.get(1) == 1
        assert beyond.wait(10)
    assert left() == []


def test_an_error_reaches_the_step_that_it_belongs_to() -> None:
    def make(step: int) -> int:
        if step == 2:
            raise OSError("the disk is gone")
        return step

    with Prefetch(make, 0, 10) as ahead:
        assert [ahead.get(0), ahead.get(1)] == [0, 1]
        for _ in range(2):
            with pytest.raises(OSError, match="the disk is gone"):
                ahead.get(2)
    assert left() == []


def test_another_step_than_the_next_is_refused() -> None:
    with Prefetch(lambda step: step, 5, 10) as ahead:
        for wrong in (4, 6):
            with pytest.raises(ValueError, match="the next is 5"):
                ahead.get(wrong)
        assert ahead.get(5) == 5
    ahead.close()
    with pytest.raises(ValueError, match="closed"):
        ahead.get(6)


def test_ctrl_c_ends_it() -> None:
    def interrupted() -> None:
        with Prefetch(lambda step: step, 0, 1000) as ahead:
            ahead.get(0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert left() == []


def test_nothing_to_make() -> None:
    with Prefetch(lambda step: step, 7, 7):
        pass
    assert left() == []
