"""Orders of group 0's leader, at the node that carries them out.

Invariants: an order names the cluster, the folder and the leader's term, and one of another cluster, for another
folder, or of an older term than was seen here is refused; a change of members names the configuration it was made from,
and is refused where another one is in force; all of them can be repeated (RULES I1, I3). Must not know: why something
is ordered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from consensus.core.configuration import decode_configuration
from consensus.core.interface import Configuration, GroupId, Home, MembershipChange, NodeId, ReplicaId
from consensus.runtime.interface import Committed, Refused, Transferred
from paramserver.catalogue import protos
from paramserver.catalogue.placement import Members
from paramserver.catalogue.state import Node
from paramserver.rpc.calls import Context
from paramserver.rpc.groups import Groups, Hosted
from paramserver.v1 import paramserver_pb2 as pb
from paramserver.wire.errors import Reason, Refusal, invalid

T = TypeVar("T")

CHANGE_TIMEOUT_MS = 5_000
"""For a change of members to be committed; what is not by then may be later."""
REPLICA_TIMEOUT_MS = 10_000
"""For a replica to be made or deleted durably."""
TRANSFER_TIMEOUT_MS = 2_000


class Host(Protocol):
    """The node, as far as orders change it. Methods raise `Refusal` when it could not be done (now)."""

    async def directory(self, version: int, nodes: tuple[Node, ...], members: dict[GroupId, Members]) -> None:
        """Durably: from now on these are the nodes, and this node is one of them."""

    async def create(self, group: GroupId, replica: ReplicaId, configuration: Configuration) -> None: ...

    async def delete(self, group: GroupId, replica: ReplicaId) -> None: ...


class Orders:
    """`node_uuid`: of this node's folder. `term`: the highest that this node's own replica of group 0 knows."""

    def __init__(
        self, host: Host, groups: Groups, *, cluster: bytes, node_uuid: bytes, term: Callable[[], int]
    ) -> None:
        self._host = host
        self._groups = groups
        self._cluster = cluster
        self._node_uuid = node_uuid
        self._term = term
        self._seen = 0

    async def order(self, request: pb.OrderRequest, context: Context = None) -> pb.OrderResponse:
        self._check(request)
        match request.WhichOneof("kind"):
            case "directory":
                await self._directory(request.directory)
            case "create":
                create = request.create
                self._group(create.group)
                await self._host.create(create.group, create.replica, _configuration(create.configuration))
            case "delete":
                await self._host.delete(request.delete.group, request.delete.replica)
            case "change":
                await self._change(request.change)
            case "transfer":
                node, term = await self._transfer(request.transfer)
                return pb.OrderResponse(leader_node=node, term=term)
            case _:
                raise invalid("kind", "an order that this build knows", "another one")
        return pb.OrderResponse()

    def _check(self, request: pb.OrderRequest) -> None:
        if request.cluster != self._cluster:
            raise Refusal(Reason.WRONG_CLUSTER, "the order is for another cluster", field="cluster")
        if request.node != self._groups.node or request.node_uuid != self._node_uuid:
            raise Refusal(
                Reason.CONFLICT,
                f"the order is for node {request.node} with data folder {request.node_uuid.hex()}; here is node "
                f"{self._groups.node} with {self._node_uuid.hex()}",
                field="node_uuid",
            )
        self._seen = max(self._seen, self._term())
        if request.term < self._seen:
            raise Refusal(
                Reason.STALE_EPOCH,
                f"the order is of term {request.term} of group 0, and term {self._seen} is known here",
                field="term",
                group=0,
                term=self._seen,
            )
        self._seen = request.term

    async def _directory(self, directory: pb.Directory) -> None:
        try:
            nodes = tuple(protos.to_node(node) for node in directory.nodes)
            members = dict(protos.to_members(group) for group in directory.groups)
        except ValueError as error:
            raise invalid("directory", "nodes and members of this format", error) from None
        await self._host.directory(directory.version, nodes, members)

    def _group(self, group: GroupId) -> None:
        if group not in self._groups.layout:
            raise Refusal(Reason.NOT_FOUND, f"no group has the number {group}", field="group", group=group)

    def _led(self, group: GroupId) -> Hosted:
        self._group(group)
        hosted = self._groups.hosted.get(group)
        if hosted is None or self._groups.leader(group)[0] != self._groups.node:
            raise self._groups.elsewhere(group)
        return hosted

    async def _change(self, change: pb.ChangeMembers) -> None:
        hosted = self._led(change.group)
        core = hosted.handle.status().core
        if core is None or core.configuration_index != change.expected_index:
            index = 0 if core is None else core.configuration_index
            raise Refusal(
                Reason.STALE_EPOCH,
                f"group {change.group} has the configuration of index {index}, not of {change.expected_index}",
                group=change.group,
            )
        homes: tuple[Home, ...] = ()
        if change.new_replica:
            homes = (Home(change.new_replica, change.node, change.node_uuid, change.address),)
        wanted = MembershipChange(tuple(change.voters), tuple(change.learners), homes)
        outcome = await outcome_of(lambda done: hosted.handle.propose_membership(wanted, done), CHANGE_TIMEOUT_MS)
        match outcome:
            case Committed():
                return
            case Refused(reason=reason, busy=True):
                raise Refusal(Reason.NOT_READY, reason or "not now", group=change.group)
            case Refused(reason=reason):
                if self._groups.leader(change.group)[0] != self._groups.node:
                    raise self._groups.elsewhere(change.group)
                raise Refusal(Reason.CONFLICT, reason or "refused", group=change.group)
            case _:
                raise Refusal(Reason.NOT_READY, f"group {change.group}'s leader changed before the outcome was known")

    async def _transfer(self, transfer: pb.TransferLeadership) -> tuple[NodeId, int]:
        hosted = self._led(transfer.group)
        outcome = await outcome_of(lambda done: hosted.handle.transfer(transfer.replica, done), TRANSFER_TIMEOUT_MS)
        match outcome:
            case Transferred(term=term):
                return self._groups.leader(transfer.group)[0], term
            case Refused(reason=reason, busy=True):
                raise Refusal(Reason.NOT_READY, reason or "not now", group=transfer.group)
            case _:
                reason = getattr(outcome, "reason", "")
                raise Refusal(
                    Reason.CONFLICT,
                    f"leadership of group {transfer.group} was not handed over: {reason or 'somebody else leads'}",
                    group=transfer.group,
                )


async def outcome_of(ask: Callable[[Callable[[Any], None]], None], timeout_ms: int | None = None) -> Any:
    """What `ask` is answered by its callback. None: however long it takes."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def done(outcome: Any) -> None:
        if not future.done():
            future.set_result(outcome)

    ask(done)
    try:
        async with asyncio.timeout(None if timeout_ms is None else timeout_ms / 1000):
            return await future
    except TimeoutError:
        raise Refusal(Reason.NOT_READY, f"not done within {timeout_ms} ms; it may be later") from None


def _configuration(data: bytes) -> Configuration:
    try:
        return decode_configuration(data)
    except ValueError as error:
        raise invalid("configuration", "a configuration of this format", error) from None
