"""What a person's wish comes to: steps, moves, transfers, and the arithmetic of quorums; or why it can't be.

Pure functions of group 0's record and of a survey made just now. Invariants: a plan takes no quorum away and asks of no
group what its live voters can't commit; a refusal says how many there are, how many are needed, and what to do. What
holds for good is checked again in apply, and by each group's own leader. Must not know: how plans are carried out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from consensus.core.interface import GroupId, NodeId, ReplicaId
from paramserver.catalogue.pictures import GroupPicture, Stranger, Survey
from paramserver.catalogue.placement import Placement, Reshape, WantedMove
from paramserver.catalogue.state import Node, NodeState
from paramserver.wire.errors import Reason, Refusal

LINES_SHOWN = 2
"""Groups whose arithmetic a refusal shows; those that would lose their quorum come first."""


@dataclass(frozen=True, slots=True)
class Transfer:
    group: GroupId
    to: ReplicaId
    to_node: NodeId


@dataclass(frozen=True, slots=True)
class Plan:
    """`reshape` None: nothing is recorded. `steps` and `arithmetic` are for people."""

    reshape: Reshape | None = None
    transfers: tuple[Transfer, ...] = ()
    steps: tuple[str, ...] = ()
    arithmetic: tuple[str, ...] = ()


# --- arithmetic


def quorum(voters: int) -> int:
    return voters // 2 + 1


def listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"


def nodes_of(numbers: Sequence[int]) -> str:
    return f"node{'s' if len(numbers) != 1 else ''} {listed(numbers)}"


def standing(picture: GroupPicture, up: Collection[NodeId]) -> str:
    """How a group stands: "group 2 has 3 voters on nodes 1, 2, 3 and needs 2 of them; up: 1, 2"."""
    nodes = picture.voter_nodes()
    count = len(nodes)
    voters = f"{count} voter{'s' if count != 1 else ''} on {nodes_of(nodes)}"
    return f"group {picture.group} has {voters} and needs {quorum(count)}; up: {listed(n for n in nodes if n in up)}"


def change_possible(picture: GroupPicture, up: Collection[NodeId]) -> str:
    """The arithmetic line for a change of that group's members. Raises where its live voters can't commit one."""
    nodes = picture.voter_nodes()
    alive = [node for node in nodes if node in up]
    if len(alive) < quorum(len(nodes)):
        raise Refusal(
            Reason.QUORUM,
            f"{standing(picture, up)}: {len(alive)} of {len(nodes)} cannot commit a change of members",
            group=picture.group,
            hint=f"start {nodes_of([node for node in nodes if node not in up])} again first",
        )
    return standing(picture, up)


# --- nodes


def add(placement: Placement, survey: Survey, stranger: Stranger, address: str) -> Plan:
    node = Node(stranger.node, address, stranger.node_uuid)
    known = placement.nodes.get(node.node)
    if known is not None and known.state is not NodeState.REMOVED and known.node_uuid != node.node_uuid:
        raise Refusal(
            Reason.CONFLICT,
            f"node {node.node} is known with data folder {known.node_uuid.hex()}, and comes with "
            f"{node.node_uuid.hex()}: its disk was wiped or replaced",
            hint=f"paramserver node replace {node.node} {node.node}={address}",
        )
    if known is not None and known.state is not NodeState.REMOVED:
        node = replace(known, address=address)
        if node == known:
            return Plan(steps=(f"nothing: node {node.node} at {address} belongs to the cluster already",))
    steps = [
        f"record node {node.node} at {address}, data folder {node.node_uuid.hex()}, in group 0",
        f"tell {nodes_of(sorted(survey.up | {node.node}))} of it",
    ]
    return Plan(Reshape(f"add node {node.node}", (node,)), (), tuple(steps), _unchanged(survey))


def remove(placement: Placement, survey: Survey, number: NodeId) -> Plan:
    node = _known(placement, number)
    held = {group: picture for group, picture in _all(survey) if picture.at(number)}
    if held:
        lines = sorted((_without(picture, number, survey.up) for picture in held.values()), reverse=True)
        shown = "; ".join(line for _, line in lines[:LINES_SHOWN])
        raise Refusal(
            Reason.QUORUM,
            f"node {number} holds replicas of group{'s' if len(held) > 1 else ''} {listed(held)}: {shown}",
            hint=f"paramserver node drain {number}, or paramserver node replace {number} NEW, moves them away first",
        )
    if node.state is NodeState.REMOVED:
        return Plan(steps=(f"nothing: node {number} was removed already",))
    gone = replace(node, state=NodeState.REMOVED, then_remove=False)
    steps = (
        f"record in group 0 that data folder {node.node_uuid.hex()} of node {number} never takes part again",
        f"tell {nodes_of(sorted(survey.up))} of it",
    )
    return Plan(Reshape(f"remove node {number}", (gone,)), (), steps, _unchanged(survey))


def replace_node(placement: Placement, survey: Survey, old: NodeId, new: Node) -> Plan:
    """`new`: another node, or the same number with another folder."""
    leaving = _known(placement, old)
    nodes: list[Node] = []
    if new.node == old:
        if new.node_uuid == leaving.node_uuid:
            return _replaced_already(placement, survey, old)
        nodes = [new]
        up = survey.up - {old}
    else:
        target = placement.nodes.get(new.node)
        if target is None or target.node_uuid != new.node_uuid:
            nodes = [new]
        elif target.state not in (NodeState.ACTIVE, NodeState.NO_LEADERS):
            raise Refusal(Reason.CONFLICT, f"node {new.node} is {target.state.name.lower()} and gets no replica")
        elif new.node not in survey.up:
            raise Refusal(Reason.QUORUM, f"node {new.node} does not answer", hint="start it first")
        _nothing_arrives(placement, old)
        nodes.append(replace(leaving, state=NodeState.DRAINING, then_remove=True))
        up = survey.up
    moves, steps, arithmetic = [], [], []
    for group, picture in _all(survey):
        moving = placement.move_of(group)
        if moving is not None and (moving.from_node, moving.to_node) == (old, new.node):
            steps.append(f"group {group}: its replica moves to node {new.node} already")
            continue
        for replica in picture.at(old):
            if new.node != old and picture.at(new.node):
                raise Refusal(
                    Reason.CONFLICT,
                    f"node {new.node} holds a replica of group {group} already ({standing(picture, up)})",
                    group=group,
                    hint=f"replace node {old} by a new node, or drain it: paramserver node drain {old}",
                )
            _one_at_a_time(placement, group)
            arithmetic.append(change_possible(picture, up))
            moves.append(_move(picture, replica, old, leaving.node_uuid, new.node))
            steps.append(_swap_step(picture, replica, old, new.node))
    first = [f"record node {new.node} at {new.address}, data folder {new.node_uuid.hex()}"] if new in nodes else []
    last = [f"remove node {old}"] if new.node != old else []
    why = f"replace node {old} by node {new.node}" if new.node != old else f"replace the folder of node {old}"
    plan = Reshape(why, tuple(nodes), tuple(moves))
    return Plan(plan, (), (*first, *steps, *last), tuple(arithmetic))


def drain(placement: Placement, survey: Survey, number: NodeId) -> Plan:
    """A place for every replica of the node, or a refusal with the arithmetic."""
    node = _known(placement, number)
    _nothing_arrives(placement, number)
    load = _load(placement, survey)
    moves, steps, arithmetic = [], [], []
    for group, picture in _all(survey):
        moving = placement.move_of(group)
        if moving is not None and moving.from_node == number:
            steps.append(f"group {group}: its replica moves to node {moving.to_node} already")
            continue
        for replica in picture.at(number):
            _one_at_a_time(placement, group)
            arithmetic.append(change_possible(picture, survey.up))
            target = _place(placement, survey, picture, number, load)
            load[target] += 1
            moves.append(_move(picture, replica, number, node.node_uuid, target))
            steps.append(_swap_step(picture, replica, number, target))
    drained = replace(node, state=NodeState.DRAINING)
    nodes = (drained,) if drained != node else ()
    if not moves and not nodes:
        return Plan(steps=(*steps, f"nothing more: node {number} is draining and holds no other replica"))
    if not moves:
        steps.append(f"record that node {number} gets no replica; it holds none")
    return Plan(Reshape(f"drain node {number}", nodes, tuple(moves)), (), tuple(steps), tuple(arithmetic))


def drain_leaders(placement: Placement, survey: Survey, number: NodeId) -> Plan:
    """Others lead what the node leads; its replicas stay."""
    node = _known(placement, number)
    leads = Counter(picture.leader_node for picture in survey.groups.values())
    transfers, steps, arithmetic = [], [], []
    for group, picture in sorted(survey.groups.items()):
        if picture.leader_node != number:
            continue
        arithmetic.append(standing(picture, survey.up))
        others = [
            voter
            for voter in picture.configuration.voters
            if picture.node_of(voter) != number
            and picture.node_of(voter) in survey.up
            and _state(placement, picture.node_of(voter)) is NodeState.ACTIVE
        ]
        if not others:
            raise Refusal(
                Reason.QUORUM,
                f"{standing(picture, survey.up)}: no node but {number} could lead it",
                group=group,
                hint="start or add a node first",
            )
        best = min(others, key=lambda voter: (leads[picture.node_of(voter)], voter))
        leads[picture.node_of(best)] += 1
        transfers.append(Transfer(group, best, picture.node_of(best)))
        steps.append(f"group {group}: node {number} hands leadership to node {picture.node_of(best)}")
    quiet = replace(node, state=NodeState.NO_LEADERS) if node.state is NodeState.ACTIVE else node
    reshape = Reshape(f"no leaders on node {number}", (quiet,)) if quiet != node else None
    if reshape is not None:
        steps.insert(0, f"record that node {number} is to lead nothing")
    steps = steps or [f"nothing: node {number} leads no group"]
    return Plan(reshape, tuple(transfers), tuple(steps), tuple(arithmetic))


def undo_drain(placement: Placement, survey: Survey, number: NodeId) -> Plan:
    node = _known(placement, number)
    active = replace(node, state=NodeState.ACTIVE, then_remove=False)
    cancel = tuple(move.group for move in placement.moves.values() if move.from_node == number and not move.cancelled)
    if active == node and not cancel:
        return Plan(steps=(f"nothing: node {number} is active",))
    steps = [f"group {group}: give its move up" for group in cancel]
    steps.append(f"record that node {number} may get replicas and leaders again")
    return Plan(Reshape(f"node {number} is active again", (active,), (), cancel), (), tuple(steps), _unchanged(survey))


# --- groups


def move(placement: Placement, survey: Survey, group: GroupId, from_node: NodeId, to_node: NodeId) -> Plan:
    picture = _picture(survey, group)
    source, target = _known(placement, from_node), _known(placement, to_node)
    held = picture.at(from_node)
    if not held:
        raise Refusal(
            Reason.NOT_FOUND,
            f"node {from_node} holds no replica of group {group}; it is on {nodes_of(picture.nodes)}",
            field="from",
            group=group,
        )
    if picture.at(to_node):
        raise Refusal(
            Reason.CONFLICT,
            f"node {to_node} holds a replica of group {group} already; it is on {nodes_of(picture.nodes)}",
            group=group,
            hint="two replicas of a group on one node would fail together",
        )
    if target.state in (NodeState.DRAINING, NodeState.REMOVED):
        raise Refusal(Reason.CONFLICT, f"node {to_node} is {target.state.name.lower()} and gets no replica")
    if to_node not in survey.up:
        raise Refusal(
            Reason.QUORUM,
            f"node {to_node} does not answer: a voter there would count and not vote ({standing(picture, survey.up)})",
            group=group,
            hint="start it first",
        )
    _one_at_a_time(placement, group)
    arithmetic = change_possible(picture, survey.up)
    wanted = _move(picture, held[0], from_node, source.node_uuid, to_node)
    return Plan(
        Reshape(f"move group {group} from node {from_node} to node {to_node}", (), (wanted,)),
        (),
        (_swap_step(picture, held[0], from_node, to_node),),
        (arithmetic,),
    )


def cancel(placement: Placement, survey: Survey, group: GroupId) -> Plan:
    moving = placement.move_of(group)
    if moving is None:
        raise Refusal(Reason.NOT_FOUND, f"no replica of group {group} is being moved", field="group")
    step = (
        f"group {group}: give the move to node {moving.to_node} up, unless its replica {moving.replica} votes already"
    )
    return Plan(Reshape(f"cancel the move of group {group}", cancel=(group,)), (), (step,), _unchanged(survey))


def transfer(placement: Placement, survey: Survey, group: GroupId, to_node: NodeId) -> Plan:
    picture = _picture(survey, group)
    _known(placement, to_node)
    voters = [voter for voter in picture.configuration.voters if picture.node_of(voter) == to_node]
    if not voters:
        what = "a learner" if picture.at(to_node) else "no replica"
        raise Refusal(
            Reason.QUORUM,
            f"node {to_node} holds {what} of group {group}, and only voters lead: {standing(picture, survey.up)}",
            group=group,
        )
    if to_node not in survey.up:
        raise Refusal(
            Reason.QUORUM,
            f"node {to_node} does not answer: {standing(picture, survey.up)}, and only one of those can lead",
            group=group,
            hint="start it first, or choose a node that is up",
        )
    if picture.leader_node == to_node:
        return Plan(steps=(f"nothing: node {to_node} leads group {group} in term {picture.term}",))
    step = f"group {group}: {_leader(picture)} hands leadership to node {to_node}"
    return Plan(None, (Transfer(group, voters[0], to_node),), (step,), (standing(picture, survey.up),))


# --- parts


def _known(placement: Placement, number: NodeId) -> Node:
    node = placement.nodes.get(number)
    if node is None:
        raise Refusal(
            Reason.NOT_FOUND,
            f"no node has the number {number}; there are {listed(sorted(placement.nodes))}",
            field="node",
            received=str(number),
        )
    return node


def _all(survey: Survey) -> list[tuple[GroupId, GroupPicture]]:
    """Every group there is. Raises where one can't be judged."""
    if survey.silent:
        raise Refusal(
            Reason.QUORUM,
            f"no replica of group{'s' if len(survey.silent) > 1 else ''} {listed(survey.silent)} answers, so nobody "
            "can say what is lost with this node",
            hint="paramserver status shows which nodes are down; start them first",
        )
    return sorted(survey.groups.items())


def _one_at_a_time(placement: Placement, group: GroupId) -> None:
    """Apply refuses it as well; a dry run should say so too."""
    moving = placement.move_of(group)
    if moving is not None:
        raise Refusal(
            Reason.CONFLICT,
            f"a replica of group {group} is being moved already, to node {moving.to_node}; one at a time",
            group=group,
            hint=f"wait for it (paramserver group list), or paramserver group cancel {group}",
        )


def _nothing_arrives(placement: Placement, number: NodeId) -> None:
    """A node that is to be emptied: what is on its way there would stay."""
    for move in placement.moves.values():
        if move.to_node == number and not move.cancelled:
            _one_at_a_time(placement, move.group)


def _without(picture: GroupPicture, number: NodeId, up: Collection[NodeId]) -> tuple[bool, str]:
    """(whether the quorum goes, the arithmetic) if the node's replica were simply gone."""
    left = [node for node in picture.voter_nodes() if node != number]
    alive = [node for node in left if node in up]
    if not left:
        return True, f"{standing(picture, up)}; node {number} is its last voter"
    needed = quorum(len(picture.voter_nodes()))
    line = f"{standing(picture, up)}; without node {number} that leaves {len(alive)}"
    return len(alive) < needed, line


def _picture(survey: Survey, group: GroupId) -> GroupPicture:
    picture = survey.groups.get(group)
    if picture is None:
        raise Refusal(
            Reason.NOT_FOUND,
            f"no group has the number {group}, or no replica of it answers; groups are {listed(sorted(survey.groups))}",
            field="group",
            received=str(group),
        )
    return picture


def _state(placement: Placement, number: NodeId) -> NodeState:
    node = placement.nodes.get(number)
    return NodeState.ACTIVE if node is None else node.state


def _move(picture: GroupPicture, old: ReplicaId, from_node: NodeId, from_uuid: bytes, to_node: NodeId) -> WantedMove:
    return WantedMove(picture.group, to_node, old, from_node, from_uuid, picture.next_replica)


def _swap_step(picture: GroupPicture, replica: ReplicaId, from_node: NodeId, to_node: NodeId) -> str:
    return (
        f"group {picture.group}: a learner on node {to_node}; when it has caught up it votes and replica {replica} on "
        f"node {from_node} leaves, in one joint change; then that replica is deleted"
    )


def _leader(picture: GroupPicture) -> str:
    return f"node {picture.leader_node}" if picture.leader_node else "whoever leads"


def _unchanged(survey: Survey) -> tuple[str, ...]:
    """Nothing about quorums changes: say how they stand."""
    return tuple(standing(picture, survey.up) for _, picture in sorted(survey.groups.items()))


def _load(placement: Placement, survey: Survey) -> Counter[NodeId]:
    """Replicas a node, those on their way included."""
    load: Counter[NodeId] = Counter()
    for picture in survey.groups.values():
        load.update(picture.nodes)
    load.update(one.to_node for one in placement.moves.values())
    return load


def _place(
    placement: Placement, survey: Survey, picture: GroupPicture, leaving: NodeId, load: Counter[NodeId]
) -> NodeId:
    """The least loaded live node without a replica of the group."""
    held = set(picture.nodes)
    possible = [
        node.node
        for node in placement.nodes.values()
        if node.node in survey.up
        and node.node not in held
        and node.node != leaving
        and node.state in (NodeState.ACTIVE, NodeState.NO_LEADERS)
    ]
    if possible:
        return min(possible, key=lambda node: (load[node], node))
    usable = sorted(
        node.node
        for node in placement.nodes.values()
        if node.node in survey.up and node.node != leaving and node.state in (NodeState.ACTIVE, NodeState.NO_LEADERS)
    )
    replicas = f"{len(picture.members)} replica{'s' if len(picture.members) > 1 else ''}"
    down = sorted(
        node.node
        for node in placement.nodes.values()
        if node.node not in survey.up and node.node != leaving and node.state is not NodeState.REMOVED
    )
    absent = f" ({nodes_of(down)} not answering)" if down else ""
    last = "; it is the last voter" if len(picture.members) == 1 else ""
    raise Refusal(
        Reason.QUORUM,
        f"{standing(picture, survey.up)}{last}; draining node {leaving} leaves "
        f"{len(usable)} node{'s' if len(usable) != 1 else ''} for {replicas}{absent}: add a node first",
        group=picture.group,
        hint="paramserver node add N=host:port adds one",
    )


def _replaced_already(placement: Placement, survey: Survey, number: NodeId) -> Plan:
    """Asked again: what still has to move does so already."""
    moving = [one.group for one in placement.moves.values() if one.from_node == one.to_node == number]
    if moving:
        return Plan(steps=tuple(f"group {group}: its replica is being replaced already" for group in moving))
    return Plan(
        steps=(f"nothing: node {number} is known with the data folder that it has",), arithmetic=_unchanged(survey)
    )
