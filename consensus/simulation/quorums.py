"""Whether two configurations of a group can decide behind each other's back.

Owns arithmetic of sets: majorities that could be disjoint. Invariant: written from the definition, not from what the
core computes, so that the two can disagree. Must not know: logs, replicas.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from consensus.core.interface import Configuration, ReplicaId


def halves(configuration: Configuration) -> tuple[tuple[ReplicaId, ...], ...]:
    """The sets of voters of each of which a decision needs a majority."""
    return (configuration.voters, configuration.outgoing) if configuration.outgoing else (configuration.voters,)


def majorities_meet(one: Collection[ReplicaId], other: Collection[ReplicaId]) -> bool:
    """Whether every majority of one shares a member with every majority of the other."""
    shared = len(set(one) & set(other))
    # Each side takes as many members as it can that the other one does not have, and only then shared ones.
    needs = max(0, len(one) // 2 + 1 - (len(one) - shared)) + max(0, len(other) // 2 + 1 - (len(other) - shared))
    return needs > shared


def quorums_meet(one: Configuration, other: Configuration) -> bool:
    """Whether every quorum of one shares a member with every quorum of the other. A quorum is a majority of each half;
    that halves of both always meet is enough, and for what Raft does also needed."""
    return any(majorities_meet(half, opposite) for half in halves(one) for opposite in halves(other))


def is_quorum(configuration: Configuration, holders: Collection[ReplicaId]) -> bool:
    return all(sum(voter in holders for voter in half) > len(half) // 2 for half in halves(configuration))


def minority_at_most(configuration: Configuration, hit: Iterable[ReplicaId]) -> bool:
    """Whether a majority of each half is left without those that are hit."""
    gone = set(hit)
    return all(sum(voter not in gone for voter in half) > len(half) // 2 for half in halves(configuration))
