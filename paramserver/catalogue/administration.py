"""What people ask of the cluster's shape, at group 0's leader: look, plan, record, hand leadership over.

Owns the way from a wish to its commands. Invariants: every wish is planned on a survey made for it, and a dry run ends
there; what is recorded is one command under the asker's (session, sequence), so a repeated one begins nothing twice
(RULES A4); what was recorded goes on by itself (`moving`), whether or not the asker waits. Must not know: gRPC, command
lines.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from consensus.core.interface import GroupId, NodeId
from paramserver.catalogue import planning
from paramserver.catalogue.machine import CatalogueMachine
from paramserver.catalogue.moving import Mover
from paramserver.catalogue.pictures import Hands, Stranger, Survey
from paramserver.catalogue.placement import FIRST_REPLICA, Reshape
from paramserver.catalogue.planning import Plan
from paramserver.catalogue.sessions import Answer
from paramserver.catalogue.state import Node
from paramserver.wire.errors import Reason, Refusal, invalid


@dataclass(frozen=True, slots=True)
class AddNode:
    node: NodeId
    address: str


@dataclass(frozen=True, slots=True)
class RemoveNode:
    node: NodeId


@dataclass(frozen=True, slots=True)
class ReplaceNode:
    """`address` empty: `by` belongs to the cluster already."""

    node: NodeId
    by: NodeId
    address: str = ""


@dataclass(frozen=True, slots=True)
class DrainNode:
    node: NodeId
    leaders_only: bool = False
    undo: bool = False


@dataclass(frozen=True, slots=True)
class MoveReplica:
    group: GroupId
    from_node: NodeId
    to_node: NodeId


@dataclass(frozen=True, slots=True)
class CancelMove:
    group: GroupId


@dataclass(frozen=True, slots=True)
class TransferTo:
    group: GroupId
    to_node: NodeId


Wish: TypeAlias = AddNode | RemoveNode | ReplaceNode | DrainNode | MoveReplica | CancelMove | TransferTo


class Administration:
    """Of one tenure. `cluster`: this one's id. `commit` takes a `Reshape` under the asker's sequence."""

    def __init__(self, machine: CatalogueMachine, hands: Hands, mover: Mover, cluster: bytes) -> None:
        self._machine = machine
        self._hands = hands
        self._cluster = cluster
        self.mover = mover

    async def survey(self) -> Survey:
        return await self._hands.survey(self._machine.nodes.values(), self._machine.groups)

    async def plan(self, wish: Wish) -> Plan:
        """What it would come to now. Raises `Refusal`."""
        stranger = await self._stranger(wish)
        survey = await self.survey()
        placement = self._machine.placement
        match wish:
            case AddNode(address=address):
                return planning.add(placement, survey, _present(stranger), address)
            case RemoveNode(node):
                return planning.remove(placement, survey, node)
            case ReplaceNode(node, by, address):
                new = Node(by, address, stranger.node_uuid) if stranger is not None else self._node(by)
                return planning.replace_node(placement, survey, node, new)
            case DrainNode(node, undo=True):
                return planning.undo_drain(placement, survey, node)
            case DrainNode(node, leaders_only=True):
                return planning.drain_leaders(placement, survey, node)
            case DrainNode(node):
                return planning.drain(placement, survey, node)
            case MoveReplica(group, from_node, to_node):
                return planning.move(placement, survey, group, from_node, to_node)
            case CancelMove(group):
                return planning.cancel(placement, survey, group)
            case TransferTo(group, to_node):
                return planning.transfer(placement, survey, group, to_node)

    async def carry_out(self, plan: Plan, commit: Callable[[Reshape], Awaitable[Answer]]) -> list[int]:
        """Record it and hand leaderships over; numbers of the moves begun, which go on by themselves."""
        moves: list[int] = []
        if plan.reshape is not None:
            first = (await commit(plan.reshape)).value
            moves = list(range(first, first + len(plan.reshape.moves)))
            self.mover.poke()
        for transfer in plan.transfers:
            picture = await self._hands.look(transfer.group)
            if picture.leader != transfer.to:
                await self._hands.transfer(picture, transfer.to)
        return moves

    # --- parts

    async def _stranger(self, wish: Wish) -> Stranger | None:
        """Who answers at the address that the wish names."""
        match wish:
            case AddNode(node, address):
                pass
            case ReplaceNode(_, node, address) if address:
                pass
            case _:
                return None
        if not 0 < node < FIRST_REPLICA:
            raise invalid("node", f"1 to {FIRST_REPLICA - 1}", node)
        found = await self._hands.identify(address)
        if found.cluster != self._cluster:
            raise Refusal(
                Reason.WRONG_CLUSTER,
                f"the server at {address} belongs to cluster {found.cluster.hex()}, this one is {self._cluster.hex()}",
                hint="start it with the member list and token that this cluster was begun with",
            )
        if found.node != node:
            raise invalid("node", f"{found.node}, which is what answers at {address}", node)
        return found

    def _node(self, number: NodeId) -> Node:
        node = self._machine.nodes.get(number)
        if node is None:
            raise Refusal(
                Reason.NOT_FOUND,
                f"no node has the number {number}",
                field="by",
                hint=f"start a server for it, and name its address: {number}=host:port",
            )
        return node


def _present(stranger: Stranger | None) -> Stranger:
    if stranger is None:
        raise ValueError("nobody was asked who the new node is")
    return stranger
