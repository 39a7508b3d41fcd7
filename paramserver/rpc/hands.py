"""How group 0's leader reaches nodes (`catalogue.pictures.Hands`), over gRPC, its own node without it.

Invariants: an answer is awaited for a bounded time; who answers for a node is that node with the folder group 0 knows,
or it does not count as up. Must not know: why nodes are asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeVar

import grpc.aio
from google.protobuf.message import Message

from consensus.core.configuration import decode_configuration, encode_configuration
from consensus.core.interface import Configuration, GroupId, Home, NodeId, ReplicaId
from paramserver.catalogue import protos
from paramserver.catalogue.pictures import GroupPicture, Stranger, Survey
from paramserver.catalogue.placement import Placement
from paramserver.catalogue.state import Node, NodeState
from paramserver.rpc.execute import SERVICE, Channels, refusal_of
from paramserver.rpc.groups import Groups
from paramserver.v1 import paramserver_pb2 as pb
from paramserver.wire.errors import Reason, Refusal

ASK_TIMEOUT_S = 1.0
"""For a node to say how it is."""
ORDER_TIMEOUT_S = 12.0
ORDER = f"/{SERVICE}/Order"
STATUS = "/paramserver.v1.Admin/Status"
WAITING = "waiting"

Answer = TypeVar("Answer", bound=Message)


class Reach:
    """Unary calls to servers, by address."""

    def __init__(self, dial: Mapping[str, str] | None = None) -> None:
        self._channels = Channels(dial)

    async def call(
        self,
        address: str,
        method: str,
        request: Message,
        answer: type[Answer],
        timeout_s: float,
        *,
        patient: bool = False,
    ) -> Answer:
        """`patient`: a server that has just been started is waited for; else what the connection came to before, within
        its back-off, is the answer. Raises `Refusal`."""
        call: Any = self._channels.to(address).unary_unary(method)
        try:
            return answer.FromString(await call(request.SerializeToString(), timeout=timeout_s, wait_for_ready=patient))
        except grpc.aio.AioRpcError as error:
            raise refusal_of(error) from None

    async def close(self) -> None:
        await self._channels.close()


class RemoteHands:
    """Of one term of group 0. `own_status`, `own_order`: this node's own answers."""

    def __init__(
        self,
        groups: Groups,
        reach: Reach,
        *,
        term: int,
        cluster: bytes,
        nodes: Callable[[], dict[NodeId, Node]],
        own_status: Callable[[pb.StatusRequest], Awaitable[pb.NodeStatus]],
        own_order: Callable[[pb.OrderRequest], Awaitable[pb.OrderResponse]],
    ) -> None:
        self._groups = groups
        self._reach = reach
        self._term = term
        self._cluster = cluster
        self._nodes = nodes
        self._own_status = own_status
        self._own_order = own_order

    # --- looking

    async def survey(self, nodes: Iterable[Node], groups: Iterable[GroupId]) -> Survey:
        asked = [node for node in nodes if node.state is not NodeState.REMOVED]
        found = await asyncio.gather(*(self._ask(node) for node in asked))
        answers = {node.node: status for node, status in zip(asked, found, strict=True) if status is not None}
        pictures: dict[GroupId, GroupPicture] = {}
        for status in answers.values():
            for state in status.groups:
                seen = picture_of(state)
                if seen is not None and _newer(seen, pictures.get(seen.group)):
                    pictures[seen.group] = seen
        return Survey(
            frozenset(answers),
            pictures,
            tuple(group for group in groups if group not in pictures),
            {node: status.directory for node, status in answers.items()},
        )

    async def look(self, group: GroupId) -> GroupPicture:
        waiting = self._groups.candidates(group)
        asked: set[NodeId] = set()
        while waiting:
            number = waiting.pop(0)
            node = self._nodes().get(number)
            if number in asked or node is None:
                continue
            asked.add(number)
            status = await self._ask(node)
            state = next((one for one in status.groups if one.group == group), None) if status is not None else None
            if state is None:
                continue
            seen = picture_of(state)
            if seen is not None and seen.leader and seen.serving:
                self._groups.announced(group, seen.term, number)
                return seen
            if state.leader_node:
                waiting.insert(0, state.leader_node)
            waiting += [member.node for member in state.members]
        raise Refusal(
            Reason.NOT_READY, f"group {group} has no leader that answers; asked nodes {sorted(asked)}", group=group
        )

    async def identify(self, address: str) -> Stranger:
        request = pb.StatusRequest(brief=True)
        try:
            try:
                found = await self._reach.call(address, STATUS, request, pb.NodeStatus, ASK_TIMEOUT_S)
            except Refusal as first:
                cause = first.message.rpartition("last error: ")[2]  # gRPC tells the whole way to it
                found = await self._reach.call(address, STATUS, request, pb.NodeStatus, ASK_TIMEOUT_S, patient=True)
        except Refusal:
            raise Refusal(
                Reason.CONFLICT,
                f"no server answers at {address}: {cause}",
                field="address",
                hint="start it first: paramserver server --node N --join HOST:PORT --members ... --data-dir DIR",
            ) from None
        return Stranger(found.node, found.node_uuid, found.cluster, found.address, found.state == WAITING)

    async def _ask(self, node: Node) -> pb.NodeStatus | None:
        """None: it does not answer, or somebody else does."""
        request = pb.StatusRequest(brief=True)
        try:
            if node.node == self._groups.node:
                status = await self._own_status(request)
            else:
                status = await self._reach.call(node.address, STATUS, request, pb.NodeStatus, ASK_TIMEOUT_S)
        except Refusal:
            return None
        known = (node.node, node.node_uuid, self._cluster)
        return status if (status.node, status.node_uuid, status.cluster) == known else None

    # --- ordering

    async def tell(self, node: Node, placement: Placement) -> None:
        directory = protos.from_directory(placement)
        await self._order(Home(0, node.node, node.node_uuid, node.address), pb.OrderRequest(directory=directory))

    async def create(self, home: Home, group: GroupId, replica: ReplicaId, configuration: Configuration) -> None:
        create = pb.CreateReplica(group=group, replica=replica, configuration=encode_configuration(configuration))
        await self._order(home, pb.OrderRequest(create=create))

    async def delete(self, home: Home, group: GroupId, replica: ReplicaId) -> None:
        await self._order(home, pb.OrderRequest(delete=pb.DeleteReplica(group=group, replica=replica)))

    async def change(
        self,
        picture: GroupPicture,
        *,
        voters: tuple[ReplicaId, ...],
        learners: tuple[ReplicaId, ...],
        new: Home | None = None,
    ) -> None:
        change = pb.ChangeMembers(group=picture.group, expected_index=picture.index, voters=voters, learners=learners)
        if new is not None:
            change.new_replica = new.replica
            change.node = new.node
            change.node_uuid = new.uuid
            change.address = new.address
        await self._order(self._home(picture.leader_node), pb.OrderRequest(change=change))

    async def transfer(self, picture: GroupPicture, to: ReplicaId) -> None:
        transfer = pb.TransferLeadership(group=picture.group, replica=to)
        response = await self._order(self._home(picture.leader_node), pb.OrderRequest(transfer=transfer))
        if response.leader_node:
            self._groups.announced(picture.group, response.term, response.leader_node)

    def _home(self, number: NodeId) -> Home:
        node = self._nodes().get(number)
        if node is None:
            raise Refusal(Reason.NOT_READY, f"nobody knows where node {number} is")
        return Home(0, node.node, node.node_uuid, node.address)

    async def _order(self, home: Home, request: pb.OrderRequest) -> pb.OrderResponse:
        request.cluster = self._cluster
        request.node = home.node
        request.node_uuid = home.uuid
        request.term = self._term
        if home.node == self._groups.node:
            return await self._own_order(request)
        return await self._reach.call(home.address, ORDER, request, pb.OrderResponse, ORDER_TIMEOUT_S)


def picture_of(state: pb.GroupState) -> GroupPicture | None:
    """None: the replica does not run, or tells of no configuration."""
    try:
        configuration = decode_configuration(state.configuration)
    except ValueError:
        return None
    leads = state.role == "leader"
    return GroupPicture(
        group=state.group,
        configuration=configuration,
        index=state.configuration_index,
        leader=state.replica if leads else 0,
        term=state.term,
        serving=state.serving,
        commit_index=state.commit_index,
        last_index=state.last_index,
        match={member.replica: member.match_index for member in state.members if member.match_index},
    )


def _newer(seen: GroupPicture, known: GroupPicture | None) -> bool:
    """A leader of the highest term tells best; without one, who has the newest configuration."""
    if known is None:
        return True
    return (bool(seen.leader), seen.term if seen.leader else 0, seen.index) > (
        bool(known.leader),
        known.term if known.leader else 0,
        known.index,
    )
