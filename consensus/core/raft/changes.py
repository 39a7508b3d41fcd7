"""Which changes of membership can be made, by which steps, and in words why not.

Owns: the arithmetic of a change (Raft section 6; dissertation sections 4.2 and 4.3). Pure functions over
configurations. Invariants: configurations that follow each other share an electorate, so their quorums overlap; nobody
becomes a voter who was no learner before, and no id is used twice (RULES I1). Must not know: logs, messages, time.

    plain ──(voters change)──> joint: both majorities decide ──(committed)──> plain
    plain ──(only learners, homes or the order of voters change)──> plain
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from consensus.core.configuration import members_of, next_replica_of, problem_of
from consensus.core.interface import Configuration, Home, MembershipChange, ReplicaId
from consensus.core.quorum import majority


def target_of(current: Configuration, change: MembershipChange) -> Configuration:
    """Where the change leads to in the end. It may be one that can't be; `static_problem` says so."""
    members = {*change.voters, *change.learners}
    homes = {home.replica: home for home in (*_homes_of(members, current.homes), *change.homes)}
    return Configuration(
        voters=change.voters,
        learners=change.learners,
        homes=_homes_of(homes, homes.values()),
        next_replica=max(next_replica_of(current), max(members, default=0) + 1),
    )


def first_step(current: Configuration, target: Configuration) -> Configuration:
    """The configuration to append: the target itself when it has the same voters, else the joint one."""
    if set(current.voters) == set(target.voters):
        return target
    joint = replace(target, outgoing=current.voters)
    homes = {home.replica: home for home in (*current.homes, *target.homes)}
    return replace(joint, homes=_homes_of(members_of(joint), homes.values()))


def final_step(joint: Configuration) -> Configuration:
    """What follows a joint configuration."""
    final = replace(joint, outgoing=())
    return replace(final, homes=_homes_of(members_of(final), joint.homes))


def _homes_of(members: Collection[ReplicaId], homes: Iterable[Home]) -> tuple[Home, ...]:
    return tuple(sorted((home for home in homes if home.replica in members), key=lambda home: home.replica))


def same(one: Configuration, other: Configuration) -> bool:
    """Whether a change from one to the other would change nothing."""
    return (
        one.voters == other.voters
        and set(one.learners) == set(other.learners)
        and {home.replica: home for home in one.homes} == {home.replica: home for home in other.homes}
    )


def static_problem(current: Configuration, target: Configuration, change: MembershipChange) -> str:
    """Why it can never be made, in words; empty when it can. `current` is not joint."""
    if not target.voters:
        return f"a group needs at least one voter; the change would remove {_names(current.voters)} and leave none"
    problem = problem_of(target)
    if problem:
        return f"the group can't become this: {problem}"
    strangers = sorted(members_of(target) - members_of(current))
    spent = [replica for replica in strangers if replica < next_replica_of(current)]
    if spent:
        return (
            f"{_names(spent)} left the group or was passed over, and no id is used twice: a new replica needs one of "
            f"at least {next_replica_of(current)}"
        )
    demoted = sorted(set(current.voters) & set(target.learners))
    if demoted:
        return f"{_names(demoted)} votes, and a voter does not become a learner again: remove it and add a new replica"
    unprepared = sorted(set(target.voters) - set(current.voters) - set(current.learners))
    if unprepared:
        return f"{_names(unprepared)} must be a learner that has caught up before it votes: add it as a learner first"
    return problem_of(first_step(current, target)) or _home_problem(current, change)


def _home_problem(current: Configuration, change: MembershipChange) -> str:
    known = {home.replica: home for home in current.homes}
    for home in change.homes:
        before = known.get(home.replica)
        if before is not None and (before.node, before.uuid) != (home.node, home.uuid):
            return f"replica {home.replica} lives on node {before.node}; replicas don't move, new ones are added"
    return ""


def quorum_problem(current: Configuration, target: Configuration, reachable: Collection[ReplicaId]) -> str:
    """Why the group could not decide anything on the way, or at its end: the change would wait for replicas that don't
    answer, and take the group with it. Empty when a majority of the voters, old and new, is reachable."""
    if set(current.voters) == set(target.voters):
        return ""
    doing = _what(current, target)
    for voters, when in (
        (target.voters, f"{doing} would leave"),
        (current.voters, f"{doing} needs the present voters:"),
    ):
        alive = [voter for voter in voters if voter in reachable]
        if len(alive) < majority(len(voters)):
            silent = [voter for voter in voters if voter not in reachable]
            return (
                f"{when} {len(alive)} of {len(voters)} voters reachable ({_names(silent)} does not answer); "
                f"a majority of {len(voters)} is {majority(len(voters))}"
            )
    return ""


def _what(current: Configuration, target: Configuration) -> str:
    removed = [voter for voter in current.voters if voter not in target.voters]
    added = [voter for voter in target.voters if voter not in current.voters]
    parts = [f"removing {_names(removed)}"] if removed else []
    parts += [f"promoting {_names(added)}"] if added else []
    return " and ".join(parts)


def _names(replicas: Iterable[ReplicaId]) -> str:
    names = [str(replica) for replica in replicas]
    return f"replica {names[0]}" if len(names) == 1 else f"replicas {', '.join(names)}"
