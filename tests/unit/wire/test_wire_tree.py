"""The bits of a sum are a function of the ranks' values alone (RULES S4)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramserver.wire.tree import TreeSum, tree, tree_sum


def values(rank: int, size: int = 6) -> np.ndarray:
    random = np.random.default_rng(rank)
    return (random.standard_normal(size) * 10.0 ** random.integers(-6, 6, size)).astype(np.float32)


def test_the_shape_of_the_tree_is_fixed() -> None:
    """((0 + 1) + (2 + 3)) + 4, and so on: these must never change, recorded gradients depend on them."""

    def text(ranks: int) -> str:
        nodes = tree(ranks)

        def show(node: int) -> str:
            left, right = nodes[node].left, nodes[node].right
            return str(node) if left < 0 else f"({show(left)}+{show(right)})"

        return show(len(nodes) - 1)

    assert [text(ranks) for ranks in range(1, 8)] == [
        "0",
        "(0+1)",
        "((0+1)+2)",
        "((0+1)+(2+3))",
        "(((0+1)+(2+3))+4)",
        "(((0+1)+(2+3))+(4+5))",
        "(((0+1)+(2+3))+((4+5)+6))",
    ]


@pytest.mark.parametrize("ranks", range(1, 6))
def test_any_order_of_arrival_gives_the_same_bits(ranks: int) -> None:
    contributions = [values(rank) for rank in range(ranks)]
    expected = tree_sum(contributions).tobytes()
    for order in itertools.permutations(range(ranks)):
        total, out = TreeSum(ranks), np.empty(6, np.float32)
        done = [total.add(rank, contributions[rank], out if rank == order[-1] else None) for rank in order]
        assert done == [False] * (ranks - 1) + [True]
        assert total.finish(out).tobytes() == expected


@given(st.integers(1, 64), st.randoms(use_true_random=False), st.sets(st.integers(0, 63)))
def test_with_empty_contributions_too(ranks: int, random: object, empty: set[int]) -> None:
    contributions = [None if rank in empty else values(rank) for rank in range(ranks)]
    results = []
    for _ in range(2):
        order = list(range(ranks))
        random.shuffle(order)  # type: ignore[attr-defined]
        total = TreeSum(ranks)
        for rank in order:
            total.add(rank, contributions[rank])
        assert total.complete
        assert total.empty == (not set(range(ranks)) - empty)
        results.append(total.finish(np.empty(6, np.float32)).tobytes())
    assert results[0] == results[1]


def test_order_matters_at_all() -> None:
    """Otherwise the tests above would show nothing."""
    contributions = [values(rank) for rank in range(4)]
    left_to_right = ((contributions[0] + contributions[1]) + contributions[2]) + contributions[3]
    assert tree_sum(contributions).tobytes() != left_to_right.tobytes()


def test_the_last_addition_goes_straight_to_the_output() -> None:
    total, out = TreeSum(2), np.empty(6, np.float32)
    total.add(1, values(1))
    total.add(0, values(0), out)
    expected = values(0) + values(1)
    assert out.tobytes() == expected.tobytes()


def test_contributions_are_never_written() -> None:
    contributions = [values(rank) for rank in range(7)]
    for contribution in contributions:
        contribution.flags.writeable = False
    tree_sum(contributions)


def test_a_rank_counts_once() -> None:
    total = TreeSum(3)
    total.add(0, values(0))
    for rank in (0, 3, -1):
        with pytest.raises(ValueError, match="rank"):
            total.add(rank, values(0))
    total.add(1, values(1))
    with pytest.raises(ValueError, match="rank"):
        total.add(1, values(1))


def test_minus_zero_stays_what_it_is_beside_an_empty_contribution() -> None:
    total = TreeSum(2)
    total.add(0, np.array([-0.0], np.float32))
    total.add(1, None)
    assert np.signbit(total.finish(np.empty(1, np.float32)))[0]
