"""Which nodes there are, and replicas on their way from one to another: values, and what the log's commands make of
them.

Owns the part of group 0's state that members of groups are driven by (RULES I3): it is intent. Who is a member is
what the group's own log says; what stands here of that is what was last heard of it, so that nodes without a replica
know whom to ask. Invariants: a replica id is given out once, and is above every id that the group's log has used (I1);
a folder that was removed or replaced never becomes a member again; one move a group at a time; a stage only rises;
`directory` rises with every change of nodes or members. Deterministic, values immutable. Must not know: how a move is
carried out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import TypeAlias

from consensus.core.interface import Configuration, GroupId, NodeId, ReplicaId
from paramserver.catalogue.sessions import Answer, refusal
from paramserver.catalogue.state import Node, NodeState
from paramserver.wire.errors import Reason

FIRST_REPLICA: ReplicaId = 1 << 16
"""Replicas of the bootstrap carry their node's number; ids given out later begin above all of these."""
NODES_MAX = 1024
MOVES_MAX = 1024
LEFTOVERS_MAX = 4096
"""Replicas that wait to be deleted; at the bound the oldest is forgotten: its group has told it that it is removed."""
WHY_CHARACTERS_MAX = 200
ADDRESS_CHARACTERS_MAX = 255
UUID_BYTES = 16


class Stage(IntEnum):
    """What of a move is under way. The group's own configuration decides what is to be done; this is for people, and
    for not looking twice."""

    CREATE = 1
    """The new replica is ordered at its node."""
    LEARN = 2
    """It is a learner, and catches up."""
    SWAP = 3
    """It is caught up: it becomes a voter and the old one leaves, in one joint change."""


@dataclass(frozen=True, slots=True)
class WantedMove:
    """A replica of `group` is to come to `to_node`, and `old` to leave (0: nobody leaves). `replica_min`: the lowest id
    that the group's log has not used."""

    group: GroupId
    to_node: NodeId
    old: ReplicaId = 0
    from_node: NodeId = 0
    from_uuid: bytes = b""
    replica_min: ReplicaId = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A `WantedMove` with the id of its new replica, and where that lives."""

    move: int
    group: GroupId
    replica: ReplicaId
    to_node: NodeId
    to_uuid: bytes
    to_address: str
    old: ReplicaId
    from_node: NodeId
    from_uuid: bytes
    stage: Stage = Stage.CREATE
    cancelled: bool = False
    why: str = ""


@dataclass(frozen=True, slots=True)
class Leftover:
    """A replica that is no member any more and is to be deleted at its node."""

    group: GroupId
    replica: ReplicaId
    node: NodeId
    node_uuid: bytes


@dataclass(frozen=True, slots=True)
class Members:
    """A group's configuration as last heard of, committed; `index`: where it stands in the group's log."""

    index: int
    configuration: Configuration


@dataclass(frozen=True, slots=True)
class Reshape:
    """What a person asked for, in one piece: `nodes` as they are from now on, moves to begin, groups whose move ends
    early."""

    why: str
    nodes: tuple[Node, ...] = ()
    moves: tuple[WantedMove, ...] = ()
    cancel: tuple[GroupId, ...] = ()


@dataclass(frozen=True, slots=True)
class MoveAdvanced:
    move: int
    stage: Stage


@dataclass(frozen=True, slots=True)
class MoveEnded:
    """`done`: the new replica is a voter and the old one is out; else the new one is out. `members`: what the group's
    log says now."""

    move: int
    group: GroupId
    members: Members
    done: bool


@dataclass(frozen=True, slots=True)
class LeftoverDeleted:
    group: GroupId
    replica: ReplicaId


@dataclass(frozen=True, slots=True)
class NodeRemoved:
    """A drained node that was to be removed then holds nothing."""

    node: NodeId
    node_uuid: bytes


PlacementCommand: TypeAlias = MoveAdvanced | MoveEnded | LeftoverDeleted | NodeRemoved
"""The driver's, idempotent by themselves. `Reshape` is a client's."""


@dataclass(frozen=True, slots=True)
class Placement:
    """All of it, replaced as a whole."""

    nodes: Mapping[NodeId, Node] = field(default_factory=dict)
    moves: Mapping[int, Move] = field(default_factory=dict)
    leftovers: tuple[Leftover, ...] = ()
    groups: Mapping[GroupId, Members] = field(default_factory=dict)
    """Groups whose members are not the bootstrap's any more."""
    next_replica: Mapping[GroupId, ReplicaId] = field(default_factory=dict)
    next_move: int = 1
    directory: int = 1

    def move_of(self, group: GroupId) -> Move | None:
        return next((move for move in self.moves.values() if move.group == group), None)


def register(placement: Placement, node: Node) -> Placement:
    """A member of the bootstrap, as a leader of group 0 knows it; one that is known stays as it is."""
    if node.node in placement.nodes or len(placement.nodes) >= NODES_MAX:
        return placement
    return _changed(placement, nodes={**placement.nodes, node.node: node})


def reshape(placement: Placement, command: Reshape, groups: Iterable[GroupId]) -> tuple[Placement, Answer]:
    """All of it or nothing. `Answer.value` is the lowest number of the moves begun."""
    problem = _problem(placement, command, frozenset(groups))
    if problem is not None:
        return placement, problem
    nodes = {**placement.nodes, **{node.node: node for node in command.nodes}}
    moves = {
        number: replace(move, cancelled=move.cancelled or move.group in command.cancel)
        for number, move in placement.moves.items()
    }
    ids = dict(placement.next_replica)
    first = number = placement.next_move
    for wanted in command.moves:
        replica = max(FIRST_REPLICA, ids.get(wanted.group, 0), wanted.replica_min)
        ids[wanted.group] = replica + 1
        target = nodes[wanted.to_node]
        moves[number] = Move(
            move=number,
            group=wanted.group,
            replica=replica,
            to_node=target.node,
            to_uuid=target.node_uuid,
            to_address=target.address,
            old=wanted.old,
            from_node=wanted.from_node,
            from_uuid=wanted.from_uuid,
            why=command.why,
        )
        number += 1
    leftovers = tuple(one for one in placement.leftovers if _folder_stands(nodes, one.node, one.node_uuid))
    changed = _changed(placement, nodes=nodes) if nodes != placement.nodes else placement
    shaped = replace(changed, moves=moves, next_replica=ids, next_move=number, leftovers=leftovers)
    return shaped, Answer(ok=True, value=first)


def advance(placement: Placement, command: PlacementCommand) -> tuple[Placement, Answer]:
    match command:
        case MoveAdvanced(number, stage):
            move = placement.moves.get(number)
            if move is not None and stage > move.stage:
                moves = {**placement.moves, number: replace(move, stage=stage)}
                return replace(placement, moves=moves), Answer(ok=True)
        case MoveEnded():
            return _ended(placement, command), Answer(ok=True)
        case LeftoverDeleted(group, replica):
            left = tuple(one for one in placement.leftovers if (one.group, one.replica) != (group, replica))
            return replace(placement, leftovers=left), Answer(ok=True)
        case NodeRemoved(number, uuid):
            node = placement.nodes.get(number)
            if node is None or node.node_uuid != uuid or not node.then_remove or node.state is not NodeState.DRAINING:
                return placement, refusal(Reason.STALE_EPOCH, f"node {number} is not to be removed now")
            if busy := _moves_at(placement, number):
                return placement, refusal(Reason.CONFLICT, busy)
            removed = replace(node, state=NodeState.REMOVED, then_remove=False)
            nodes = {**placement.nodes, number: removed}
            leftovers = tuple(one for one in placement.leftovers if one.node != number)
            return replace(_changed(placement, nodes=nodes), leftovers=leftovers), Answer(ok=True)
    return placement, Answer(ok=True)


def _ended(placement: Placement, command: MoveEnded) -> Placement:
    move = placement.moves.get(command.move)
    if move is None or move.group != command.group:
        return placement
    moves = {number: one for number, one in placement.moves.items() if number != command.move}
    out = (
        Leftover(move.group, move.old, move.from_node, move.from_uuid)
        if command.done
        else Leftover(move.group, move.replica, move.to_node, move.to_uuid)
    )
    leftovers = placement.leftovers
    if out.replica and _folder_stands(placement.nodes, out.node, out.node_uuid):
        leftovers = (*leftovers, out)[-LEFTOVERS_MAX:]
    groups = placement.groups
    known = groups.get(command.group)
    if known is None or command.members.index > known.index:
        groups = {**groups, command.group: command.members}
    return replace(_changed(placement, groups=groups), moves=moves, leftovers=leftovers)


def _problem(placement: Placement, command: Reshape, groups: frozenset[GroupId]) -> Answer | None:
    if len(command.why) > WHY_CHARACTERS_MAX:
        return refusal(Reason.INVALID, f"why has {len(command.why)} characters, at most {WHY_CHARACTERS_MAX}")
    nodes = dict(placement.nodes)
    for node in command.nodes:
        if problem := _node_problem(placement, nodes, node):
            return problem
        nodes[node.node] = node
    if len(nodes) > NODES_MAX:
        return refusal(Reason.TOO_LARGE, f"the cluster would have {len(nodes)} nodes, at most {NODES_MAX}")
    for group in command.cancel:
        if placement.move_of(group) is None:
            return refusal(Reason.NOT_FOUND, f"no replica of group {group} is being moved")
    if len(placement.moves) + len(command.moves) > MOVES_MAX:
        return refusal(Reason.TOO_LARGE, f"{MOVES_MAX} replicas are being moved, the bound")
    moving = {move.group: move for move in placement.moves.values()}
    seen: set[GroupId] = set()
    for wanted in command.moves:
        if wanted.group not in groups:
            return refusal(Reason.NOT_FOUND, f"no group has the number {wanted.group}")
        if wanted.group in moving or wanted.group in seen:
            message = f"a replica of group {wanted.group} is being moved already"
            if wanted.group in moving:
                message += f", to node {moving[wanted.group].to_node}: wait for it, or cancel it"
            return refusal(Reason.CONFLICT, message)
        seen.add(wanted.group)
        target = nodes.get(wanted.to_node)
        if target is None:
            return refusal(Reason.NOT_FOUND, f"no node has the number {wanted.to_node}")
        if target.state in (NodeState.DRAINING, NodeState.REMOVED):
            return refusal(Reason.CONFLICT, f"node {target.node} is {target.state.name.lower()} and gets no replica")
    return None


def _node_problem(placement: Placement, nodes: Mapping[NodeId, Node], node: Node) -> Answer | None:
    if not 0 < node.node < FIRST_REPLICA or len(node.node_uuid) != UUID_BYTES:
        return refusal(Reason.INVALID, f"node {node.node} with a uuid of {len(node.node_uuid)} bytes")
    if not node.address or len(node.address) > ADDRESS_CHARACTERS_MAX:
        return refusal(Reason.INVALID, f"node {node.node} has no address, or one that is too long")
    for other in nodes.values():
        if other.state is NodeState.REMOVED or other.node == node.node or node.state is NodeState.REMOVED:
            continue
        if other.address == node.address:
            return refusal(Reason.CONFLICT, f"node {other.node} has the address {node.address}")
        if other.node_uuid == node.node_uuid:
            return refusal(Reason.CONFLICT, f"node {other.node} has that data folder")
    known = placement.nodes.get(node.node)
    if known is not None and node.state is NodeState.REMOVED and (busy := _moves_at(placement, node.node)):
        return refusal(Reason.CONFLICT, busy)
    if known is None or known.state is not NodeState.REMOVED or known == node:
        return None
    if known.node_uuid == node.node_uuid:
        return refusal(
            Reason.CONFLICT, f"node {node.node} was removed; it may come back with an empty data folder only"
        )
    return None


def _moves_at(placement: Placement, node: NodeId) -> str:
    for move in placement.moves.values():
        if node in (move.to_node, move.from_node):
            return f"a replica of group {move.group} is being moved from node {move.from_node} to node {move.to_node}"
    return ""


def _folder_stands(nodes: Mapping[NodeId, Node], node: NodeId, uuid: bytes) -> bool:
    """Whether that folder may still hold anything for us."""
    known = nodes.get(node)
    return known is not None and known.node_uuid == uuid and known.state is not NodeState.REMOVED


def _changed(
    placement: Placement,
    *,
    nodes: Mapping[NodeId, Node] | None = None,
    groups: Mapping[GroupId, Members] | None = None,
) -> Placement:
    return replace(
        placement,
        nodes=placement.nodes if nodes is None else nodes,
        groups=placement.groups if groups is None else groups,
        directory=placement.directory + 1,
    )
