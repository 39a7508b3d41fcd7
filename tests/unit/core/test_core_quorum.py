"""Quorum arithmetic against the plainest version one could write (HAZARDS 10)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.core.errors import InvariantViolated
from consensus.core.interface import Configuration
from consensus.core.quorum import (
    VoteOutcome,
    committed_index,
    election_outcome,
    has_quorum,
    majority,
    quorum_index,
    vote_outcome,
)


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


# --- of a configuration, joint or not, against counting by hand (HAZARDS 10) ----------------------------------------

replicas = st.integers(1, 7)
configurations = st.builds(
    lambda voters, outgoing: Configuration(tuple(voters), outgoing=tuple(outgoing)),
    st.lists(replicas, min_size=1, max_size=7, unique=True),
    st.lists(replicas, max_size=7, unique=True),
)


def naive_has_quorum(configuration: Configuration, members: set[int]) -> bool:
    """Of each of the two sets, those who agree are more than those who don't."""
    for voters in (configuration.voters, configuration.outgoing):
        if voters and len(set(voters) & members) <= len(set(voters) - members):
            return False
    return True


@given(configurations, st.sets(st.integers(1, 9)))
def test_a_joint_quorum_is_a_majority_of_both(configuration: Configuration, members: set[int]) -> None:
    assert has_quorum(configuration, members) == naive_has_quorum(configuration, members)


@given(configurations, st.dictionaries(st.integers(1, 9), st.integers(0, 12)))
def test_committed_index_is_the_highest_that_a_quorum_holds(
    configuration: Configuration, matches: dict[int, int]
) -> None:
    naive = max(
        index
        for index in range(13)
        if index == 0
        or naive_has_quorum(configuration, {member for member, match in matches.items() if match >= index})
    )
    assert committed_index(configuration, matches) == naive


@given(configurations, st.sets(st.integers(1, 9)), st.sets(st.integers(1, 9)))
def test_election_outcome_is_what_counting_says_for_both(
    configuration: Configuration, granted: set[int], refused: set[int]
) -> None:
    outcome = election_outcome(configuration, granted=granted, refused=refused)
    if naive_has_quorum(configuration, granted):
        assert outcome is VoteOutcome.WON
    elif naive_has_quorum(configuration, set(range(1, 8)) - (refused - granted)):
        assert outcome is VoteOutcome.PENDING
    else:
        assert outcome is VoteOutcome.LOST


@given(configurations, st.data())
def test_quorums_of_adjacent_configurations_overlap(joint: Configuration, data: st.DataObject) -> None:
    """Why the way leads through a joint configuration: its quorums meet those of the old one and of the new one."""
    if not joint.outgoing:
        return
    everybody = sorted({*joint.voters, *joint.outgoing})
    some = set(data.draw(st.lists(st.sampled_from(everybody), unique=True)))
    others = set(everybody) - some
    for end in (Configuration(joint.voters), Configuration(joint.outgoing)):
        assert not (has_quorum(joint, some) and has_quorum(end, others))
