"""Arithmetic of majorities, and nothing else.

Owns: what a quorum is, of a set of voters and of a configuration. A joint configuration has two electorates, and its
decisions need a majority of each (Raft section 6). Invariants: pure functions; everything is recomputed from scratch,
because a sorted match vector that is kept up to date step by step once committed without a quorum (HAZARDS 10). Must
not know: roles, messages, logs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import IntEnum

from consensus.core.errors import InvariantViolated
from consensus.core.interface import Configuration, ReplicaId


class VoteOutcome(IntEnum):
    PENDING = 1
    WON = 2
    LOST = 3


def majority(voters: int) -> int:
    """How many of `voters` (a count, at least 1) any two quorums share a member of."""
    if voters < 1:
        raise InvariantViolated(f"a quorum needs at least one voter, not {voters}")
    return voters // 2 + 1


def quorum_index(matches: Sequence[int]) -> int:
    """The highest index that a majority has reached; `matches` holds one index a voter, in any order."""
    needed = majority(len(matches))
    return sorted(matches, reverse=True)[needed - 1]


def vote_outcome(voters: Collection[int], *, granted: Collection[int], refused: Collection[int]) -> VoteOutcome:
    """State of an election among `voters`. Answers of others don't count; who both granted and refused counts as
    granted (a voter may grant what it refused a moment ago, never take a vote back)."""
    needed = majority(len(voters))
    yes = sum(1 for voter in voters if voter in granted)
    if yes >= needed:
        return VoteOutcome.WON
    no = sum(1 for voter in voters if voter in refused and voter not in granted)
    if len(voters) - no < needed:
        return VoteOutcome.LOST
    return VoteOutcome.PENDING


# --- of a configuration ---------------------------------------------------------------------------------------------


def electorates(configuration: Configuration) -> tuple[tuple[ReplicaId, ...], ...]:
    """The sets of voters of which each must agree."""
    return (configuration.voters, configuration.outgoing) if configuration.outgoing else (configuration.voters,)


def has_quorum(configuration: Configuration, members: Collection[ReplicaId]) -> bool:
    """Whether `members` hold a majority of every electorate; learners and strangers among them don't count."""
    return all(
        sum(1 for voter in voters if voter in members) >= majority(len(voters)) for voters in electorates(configuration)
    )


def election_outcome(
    configuration: Configuration, *, granted: Collection[ReplicaId], refused: Collection[ReplicaId]
) -> VoteOutcome:
    """State of an election: won when every electorate is, lost when one is."""
    outcomes = [vote_outcome(voters, granted=granted, refused=refused) for voters in electorates(configuration)]
    if VoteOutcome.LOST in outcomes:
        return VoteOutcome.LOST
    return VoteOutcome.PENDING if VoteOutcome.PENDING in outcomes else VoteOutcome.WON


def committed_index(configuration: Configuration, matches: Mapping[ReplicaId, int]) -> int:
    """The highest index that a majority of every electorate has reached; who is not in `matches` has reached none."""
    return min(quorum_index([matches.get(voter, 0) for voter in voters]) for voters in electorates(configuration))
