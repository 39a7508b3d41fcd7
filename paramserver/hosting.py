"""The replicas on this node, and the nodes around it, as orders of group 0 change them (`rpc.orders.Host`).

Owns what is hosted: at the start the bootstrap's replicas that were not deleted since, and those that orders made; then
what orders make and delete. Invariants: a folder that came after the bootstrap hosts nothing that the member list names
(RULES I1, I2); what a directory says is on disk before it is acted on, and an older one changes nothing. Must not know:
gRPC, why something is ordered, what a replica holds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Protocol, TypeAlias

from consensus.core.interface import Configuration, GroupId, NodeId, ReplicaId
from consensus.runtime import NodeRuntime
from consensus.runtime.interface import GroupListener, Refused, StateMachine
from consensus.storage.errors import StorageFull
from paramserver.catalogue import protos
from paramserver.catalogue.placement import Members
from paramserver.catalogue.state import Node, NodeState
from paramserver.rpc.groups import Groups, Hosted
from paramserver.rpc.orders import REPLICA_TIMEOUT_MS, outcome_of
from paramserver.v1 import paramserver_pb2 as pb
from paramserver.wire.errors import Reason, Refusal

log = logging.getLogger("paramserver")

Room: TypeAlias = Callable[[GroupId, ReplicaId], tuple[StateMachine, GroupListener]]
"""A new, empty state machine for a replica, and who listens to its group."""


class Peers(Protocol):
    """The transport, as far as nodes come and go."""

    async def admit(self, node: NodeId, address: str, uuid: bytes) -> None:
        """From now on that node is there, under that folder and no other; durable when it returns."""

    async def dismiss(self, node: NodeId) -> None: ...


class Folder(Protocol):
    """`consensus.storage.identity.NodeIdentity`, as far as it is used here."""

    @property
    def uuid(self) -> bytes: ...

    @property
    def joined(self) -> bool: ...

    @property
    def activated(self) -> bool: ...

    def activate(self) -> None: ...


class Hosting:
    """`save`: makes a directory durable (touches the disk). `vacated(group)`: the replica is gone; its room is empty.
    `changed(version)`: nodes or members are others than before."""

    def __init__(
        self,
        *,
        groups: Groups,
        runtime: NodeRuntime,
        peers: Peers,
        folder: Folder,
        room: Room,
        save: Callable[[pb.Directory], None],
        vacated: Callable[[GroupId], None],
        changed: Callable[[int], None],
        blocking: Callable[[Callable[[], None]], Awaitable[None]] = asyncio.to_thread,
    ) -> None:
        """`blocking`: runs what touches the disk beside the event loop."""
        self._blocking = blocking
        self._groups = groups
        self._runtime = runtime
        self._peers = peers
        self._folder = folder
        self._room = room
        self._save = save
        self._vacated = vacated
        self._changed = changed
        self._turn = asyncio.Lock()
        self._admitting: set[asyncio.Task[None]] = set()
        self.admitted = asyncio.Event()
        """Group 0 has told this node that it belongs to the cluster, now or in an earlier life."""
        self._begun = False
        self._under_way: dict[GroupId, tuple[int, asyncio.Task[None]]] = {}
        """What is being made (the replica's id) or deleted (its negative) for a group: one at a time."""
        self.removed = False
        """Group 0 has told this node that its folder takes part no more."""
        if folder.activated:
            self.admitted.set()

    # --- the start

    async def remember(self, directory: pb.Directory) -> None:
        """What was told in an earlier life."""
        nodes, members = _parts(directory)
        self._groups.told(directory.version, nodes, members)
        self._avoid(nodes)
        me = self._groups.nodes.get(self._groups.node)
        if me is not None and me.node_uuid == self._folder.uuid:
            self._note_removal(me)
        await self._reach(nodes)

    def begin(self) -> None:
        """Host what this folder holds, or is the first to hold. Orders are carried out from now on."""
        self._begun = True
        for group, creation in self._runtime.creations.items():
            self._add(group, creation.replica, creation.configuration)
        if self._folder.joined:
            return
        node = self._groups.node
        for group, configuration in self._groups.layout.items():
            here = node in configuration.voters and group not in self._groups.hosted
            if here and not self._runtime.deleted(group, node):
                self._add(group, node, configuration)

    def _add(self, group: GroupId, replica: ReplicaId, configuration: Configuration) -> None:
        machine, listener = self._room(group, replica)
        handle = self._runtime.add_group(
            group=group,
            replica=replica,
            configuration=configuration,
            nodes={},
            machine=machine,
            listener=listener,
            on_configuration=self._follow,
        )
        self._groups.hosted[group] = Hosted(group, replica, handle, machine)
        if handle.problem:
            log.error("group %d does not run here: %s", group, handle.problem.removeprefix(f"group {group}: "))

    # --- rpc.orders.Host

    async def directory(self, version: int, nodes: tuple[Node, ...], members: dict[GroupId, Members]) -> None:
        async with self._turn:
            if version < self._groups.directory:
                return
            me = next((node for node in nodes if node.node == self._groups.node), None)
            if me is None or me.node_uuid != self._folder.uuid:
                raise Refusal(Reason.CONFLICT, f"the directory does not know node {self._groups.node} with its folder")
            told = pb.Directory(
                version=version,
                nodes=[protos.from_node(node) for node in nodes],
                groups=[protos.from_members(group, one) for group, one in members.items()],
            )
            if version > self._groups.directory:
                await self._keep(told)
            self._groups.told(version, nodes, members)
            self._avoid(nodes)
            await self._reach(nodes)
            self._note_removal(me)
            if not self._folder.activated and not self.removed:
                await self._blocking(self._folder.activate)
            if not self.removed:
                self.admitted.set()
            self._changed(version)

    async def _keep(self, told: pb.Directory) -> None:
        """Without space it is not kept: a later life hears it again, and it may be what gets this node out of there."""
        try:
            await self._blocking(lambda: self._save(told))
        except StorageFull as error:
            log.warning("what group 0 tells of nodes is not kept: %s", error)

    async def create(self, group: GroupId, replica: ReplicaId, configuration: Configuration) -> None:
        await self._once(group, replica, lambda: self._create(group, replica, configuration))

    async def delete(self, group: GroupId, replica: ReplicaId) -> None:
        await self._once(group, -replica, lambda: self._delete(group, replica))

    async def _once(self, group: GroupId, what: int, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """What was begun ends, whoever gives up waiting for it; the same order again waits for that end, and another
        one for the group has to come later."""
        if not self._begun:
            raise Refusal(Reason.NOT_READY, f"node {self._groups.node} is starting", group=group, retry_after_ms=100)
        under_way = self._under_way.get(group)
        if under_way is None:
            task = asyncio.ensure_future(work())
            under_way = self._under_way[group] = (what, task)
            task.add_done_callback(lambda done: self._ended(group, done))
        elif under_way[0] != what:
            raise Refusal(Reason.NOT_READY, "another replica of the group is being made or deleted here", group=group)
        try:
            async with asyncio.timeout(REPLICA_TIMEOUT_MS / 1000):
                await asyncio.shield(under_way[1])
        except TimeoutError:
            message = f"not done within {REPLICA_TIMEOUT_MS} ms; it goes on"
            raise Refusal(Reason.NOT_READY, message, group=group) from None

    def _ended(self, group: GroupId, task: asyncio.Task[None]) -> None:
        del self._under_way[group]
        if not task.cancelled():
            task.exception()  # whoever waited was told; if nobody did, the order comes again

    async def _create(self, group: GroupId, replica: ReplicaId, configuration: Configuration) -> None:
        hosted = self._groups.hosted.get(group)
        if hosted is not None:
            if hosted.replica == replica:
                return
            raise Refusal(
                Reason.NOT_READY, f"replica {hosted.replica} of group {group} is here, and has to go first", group=group
            )
        self._follow(configuration, False)
        machine, listener = self._room(group, replica)
        outcome = await outcome_of(
            lambda done: self._runtime.create_replica(
                group=group,
                replica=replica,
                configuration=configuration,
                machine=machine,
                listener=listener,
                done=done,
                on_configuration=self._follow,
            )
        )
        if isinstance(outcome, Refused):
            self._vacated(group)
            raise Refusal(Reason.NOT_READY if outcome.busy else Reason.CONFLICT, outcome.reason, group=group)
        self._groups.hosted[group] = Hosted(group, replica, self._runtime.groups[group], machine)
        log.info("group %d: replica %d is made here, by order of group 0", group, replica)

    async def _delete(self, group: GroupId, replica: ReplicaId) -> None:
        hosted = self._groups.hosted.get(group)
        here = hosted is not None and hosted.replica == replica
        if here:
            del self._groups.hosted[group]
        outcome = await outcome_of(lambda done: self._runtime.delete_replica(group, replica, done))
        if isinstance(outcome, Refused):
            raise Refusal(Reason.NOT_READY, outcome.reason or "not now", group=group)
        if here:
            self._vacated(group)
            log.info("group %d: replica %d is deleted here, by order of group 0", group, replica)

    # --- nodes

    def _avoid(self, nodes: Iterable[Node]) -> None:
        """A node that is to lead nothing, or to go, is not handed any leadership, nor keeps one (RULES C6)."""
        self._runtime.avoid(node.node for node in nodes if node.state is not NodeState.ACTIVE)

    async def _reach(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            if node.node == self._groups.node:
                continue
            if node.state is NodeState.REMOVED:
                await self._peers.dismiss(node.node)
            else:
                await self._peers.admit(node.node, node.address, node.node_uuid)

    def _follow(self, configuration: Configuration, _committed: bool) -> None:
        """A configuration brings the homes of members that group 0 may not have told this node of yet (RULES I2)."""
        for home in configuration.homes:
            known = self._groups.nodes.get(home.node)
            if known is None and home.uuid and home.address and home.node != self._groups.node:
                self._groups.addresses.setdefault(home.node, home.address)
                task = asyncio.ensure_future(self._admit(home.node, home.address, home.uuid))
                self._admitting.add(task)
                task.add_done_callback(self._admitting.discard)

    async def _admit(self, node: NodeId, address: str, uuid: bytes) -> None:
        async with self._turn:
            if node not in self._groups.nodes:  # nor told meanwhile
                await self._peers.admit(node, address, uuid)

    def _note_removal(self, me: Node) -> None:
        removed = me.state is NodeState.REMOVED
        if removed and not self.removed:
            log.error("this node was removed from the cluster; it takes part no more: stop it")
        self.removed = removed


def _parts(directory: pb.Directory) -> tuple[tuple[Node, ...], dict[GroupId, Members]]:
    nodes = tuple(protos.to_node(node) for node in directory.nodes)
    return nodes, dict(protos.to_members(group) for group in directory.groups)
