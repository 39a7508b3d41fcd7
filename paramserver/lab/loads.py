"""What groups and nodes hold and do, summed up from what every node says of itself.

Owns the sums. Invariants: a group's bytes are counted once, as its leader tells them (or, while it has none, whoever
holds most); what replicas do for clients is added up, for each does its own part; a node that gave no answer adds
nothing. Must not know: how it is shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from paramserver.lab.status import Answer, GroupSnapshot, LoadSnapshot, leaders, reached

CATALOGUE_GROUP = 0


@dataclass(frozen=True, slots=True)
class GroupTotal:
    """`leader` 0: nobody leads. `weight_bytes`: one version of its blocks; `state_bytes`: what a replica keeps for
    them, with the version before and the optimizer's state. `load`: of all replicas together."""

    group: int
    leader: int
    blocks: int
    weight_bytes: int
    state_bytes: int
    load: LoadSnapshot


@dataclass(frozen=True, slots=True)
class NodeTotal:
    """`groups`: data groups with a replica here; `leads`: those that this node leads, with so many blocks and bytes of
    weights."""

    node: int
    zone: str
    groups: int
    leads: tuple[int, ...]
    blocks: int
    blocks_led: int
    weight_bytes_led: int
    state_bytes: int
    load: LoadSnapshot


def by_group(answers: Sequence[Answer]) -> tuple[GroupTotal, ...]:
    """Data groups, in order."""
    led = leaders(answers)
    nodes = reached(answers)
    totals = []
    for group in sorted({state.group for node in nodes for state in node.groups} - {CATALOGUE_GROUP}):
        states = [(node.node, state) for node in nodes for state in node.groups if state.group == group]
        _, best = max(states, key=lambda one: (one[0] == led.get(group), one[1].weight_bytes))
        totals.append(
            GroupTotal(
                group=group,
                leader=led.get(group, 0),
                blocks=best.block_count,
                weight_bytes=best.weight_bytes,
                state_bytes=best.state_bytes,
                load=_sum(state.load for _, state in states),
            )
        )
    return tuple(totals)


def by_node(answers: Sequence[Answer]) -> tuple[NodeTotal, ...]:
    led = leaders(answers)
    totals = []
    for node in sorted(reached(answers), key=lambda one: one.node):
        states = [state for state in node.groups if state.group != CATALOGUE_GROUP]
        here: list[GroupSnapshot] = [state for state in states if led.get(state.group) == node.node]
        totals.append(
            NodeTotal(
                node=node.node,
                zone=node.zone,
                groups=len(states),
                leads=tuple(state.group for state in here),
                blocks=sum(state.block_count for state in states),
                blocks_led=sum(state.block_count for state in here),
                weight_bytes_led=sum(state.weight_bytes for state in here),
                state_bytes=sum(state.state_bytes for state in states),
                load=_sum(state.load for state in states),
            )
        )
    return tuple(totals)


def _sum(loads: Iterable[LoadSnapshot]) -> LoadSnapshot:
    found = list(loads)
    return LoadSnapshot(
        **{field.name: sum(getattr(one, field.name) for one in found) for field in fields(LoadSnapshot)}
    )
