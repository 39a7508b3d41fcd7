"""Groups that lack a majority of voters that may vote, as far as the answers of their nodes tell.

Owns the arithmetic. Invariants: a group that somebody leads has not stopped; members are told by the replica that knows
the latest configuration; a joint configuration needs a majority of both its halves. Must not know: how it is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paramserver.lab.status import Answer, GroupSnapshot, MemberSnapshot, leader_of, reached

ENTERING = ("voter", "incoming")
LEAVING = ("voter", "outgoing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """Nodes by what keeps their voters from voting: `forgetful` ones lost something of their disk (RULES W7), `broken`
    ones hold no replica that runs, `silent` ones gave no answer. `outgoing`: of a joint configuration's old half."""

    group: int
    voters: int
    needed: int
    forgetful: tuple[int, ...]
    broken: tuple[int, ...]
    silent: tuple[int, ...]
    outgoing: bool = False


def stopped(answers: Sequence[Answer]) -> tuple[Stopped, ...]:
    groups = sorted({state.group for node in reached(answers) for state in node.groups if state.members})
    found = (_stopped(answers, group) for group in groups if leader_of(answers, group) is None)
    return tuple(one for one in found if one is not None)


def _stopped(answers: Sequence[Answer], group: int) -> Stopped | None:
    asked = {node.node for node in reached(answers)}
    states = {node.node: state for node in reached(answers) if (state := node.group(group)) is not None}
    known = [state for state in states.values() if state.members]
    best = max(known, key=lambda state: (state.configuration_index, state.term))
    for roles in (ENTERING, LEAVING):
        voters = [one for one in best.members if one.role in roles]
        silent = tuple(sorted(one.node for one in voters if one.node not in asked))
        broken = tuple(sorted(one.node for one in voters if one.node in asked and not _runs(one, states)))
        forgetful = tuple(sorted(one.node for one in voters if _runs(one, states) and states[one.node].forgetful))
        needed = len(voters) // 2 + 1
        if len(voters) - len(silent) - len(broken) - len(forgetful) < needed:
            return Stopped(
                group=group,
                voters=len(voters),
                needed=needed,
                forgetful=forgetful,
                broken=broken,
                silent=silent,
                outgoing=roles is LEAVING and best.joint,
            )
    return None


def _runs(member: MemberSnapshot, states: dict[int, GroupSnapshot]) -> bool:
    state = states.get(member.node)
    return state is not None and state.replica == member.replica and not state.problem and not state.removed
