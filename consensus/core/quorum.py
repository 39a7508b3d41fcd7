"""Arithmetic of majorities, and nothing else.

Owns: what a quorum is. Invariants: pure functions; everything is recomputed from scratch, because a sorted match vector
that is kept up to date step by step once committed without a quorum (HAZARDS 10). Must not know: roles, messages, logs.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from enum import IntEnum

from consensus.core.errors import InvariantViolated


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
