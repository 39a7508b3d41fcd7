"""The counting load's arithmetic: lost and doubled updates are numbers, and never cancel out."""

from __future__ import annotations

import numpy as np

from paramserver.lab.chaos import counting
from paramserver.lab.chaos.counting import BLOCK_ELEMENTS, BLOCKS, PART, RANKS, Count


def after(steps: int) -> list[np.ndarray]:
    """Blocks after so many steps of every rank, by the gradients themselves."""
    weights = np.zeros(BLOCKS * BLOCK_ELEMENTS, np.float32)
    gradient = np.empty_like(weights)
    for step in range(steps):
        for rank in range(RANKS):
            counting.gradient(rank, step, gradient)
            weights -= gradient
    return list(weights.reshape(BLOCKS, BLOCK_ELEMENTS))


def found(blocks: list[np.ndarray], least: int, most: int) -> Count:
    return counting.check_all(blocks, [least] * RANKS, [most] * RANKS)


def test_what_should_be_there_is_what_the_gradients_add() -> None:
    for steps in (0, 1, PART, PART + 3, 2 * PART + 1):
        assert found(after(steps), steps, steps) == Count(0, 0)


def test_a_lost_and_a_doubled_update_are_one_each_and_do_not_cancel_out() -> None:
    blocks = after(100)
    blocks[2][counting.position(1, 40)] -= 1.0
    assert found(blocks, 100, 100) == Count(1, 0)
    blocks[2][counting.position(1, 41)] += 1.0
    blocks[5][counting.position(0, 7)] += 2.0
    assert found(blocks, 100, 100) == Count(1, 3)


def test_an_update_that_nobody_was_told_of_may_be_there_or_not() -> None:
    assert found(after(100), 99, 101) == Count(0, 0)
    assert found(after(98), 99, 101) == Count(BLOCKS * RANKS, 0)
    assert found(after(102), 99, 101) == Count(0, BLOCKS * RANKS)


def test_a_weight_that_is_no_count_is_wrong_both_ways() -> None:
    for value in (0.5, float("nan"), float("inf"), -3.0):
        blocks = after(10)
        blocks[0][PART - 1] = value
        count = found(blocks, 10, 10)
        assert count.missing + count.extra > 0, value


def test_one_rank_that_was_told_is_enough_and_all_have_to_push() -> None:
    assert counting.bounds([5, 6], [7, 6]) == ([6, 6], [6, 6])
    assert counting.bounds([5, 5], [7, 6]) == ([5, 5], [6, 6])
    assert counting.bounds([0, 0], [0, 1]) == ([0, 0], [0, 0])
