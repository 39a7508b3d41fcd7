"""Quorum arithmetic against the plainest version one could write (HAZARDS 10)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.core.errors import InvariantViolated
from consensus.core.quorum import VoteOutcome, majority, quorum_index, vote_outcome


def naive_quorum_index(matches: list[int]) -> int:
    """The highest index so many voters reached that those who did not are fewer."""
    best = 0
    for index in range(max(matches) + 1):
        reached = [match for match in matches if match >= index]
        if len(reached) > len(matches) - len(reached):
            best = index
    return best


@given(st.lists(st.integers(0, 30), min_size=1, max_size=9))
def test_quorum_index_is_what_counting_says(matches: list[int]) -> None:
    assert quorum_index(matches) == naive_quorum_index(matches)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=9), st.randoms())
def test_order_does_not_matter(matches: list[int], random) -> None:  # type: ignore[no-untyped-def]
    shuffled = list(matches)
    random.shuffle(shuffled)
    assert quorum_index(shuffled) == quorum_index(matches)


@given(st.integers(1, 99))
def test_two_majorities_share_a_member(voters: int) -> None:
    assert 2 * majority(voters) > voters
    assert 2 * (majority(voters) - 1) <= voters


@given(
    st.sets(st.integers(1, 9), min_size=1, max_size=7),
    st.sets(st.integers(1, 9)),
    st.sets(st.integers(1, 9)),
)
def test_vote_outcome_is_what_counting_says(voters: set[int], granted: set[int], refused: set[int]) -> None:
    yes = voters & granted
    open_ = voters - granted - refused
    outcome = vote_outcome(voters, granted=granted, refused=refused)
    if 2 * len(yes) > len(voters):
        assert outcome is VoteOutcome.WON
    elif 2 * (len(yes) + len(open_)) > len(voters):
        assert outcome is VoteOutcome.PENDING
    else:
        assert outcome is VoteOutcome.LOST


def test_no_voters_have_no_quorum() -> None:
    with pytest.raises(InvariantViolated, match="at least one voter"):
        quorum_index([])
