"""A server of the simulated cluster: all its parts but disk, network and threads, put together as `paramserver.node`
does it.

Owns one life of one node. Invariant: what a call or a group's listener sets in motion runs on this life's event loop.
Must not know: workers, faults.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import grpc
from google.protobuf.message import Message

from consensus.core.interface import Configuration, GroupId, NodeId, ReplicaId
from consensus.runtime.interface import Applied, GroupListener, Outcome, StateMachine
from consensus.simulation.cluster import Cluster
from consensus.simulation.loop import VirtualLoop, virtual_loop
from consensus.simulation.node import CLUSTER, SimulatedNode
from consensus.simulation.schedule import MS, stream
from paramserver.catalogue.bootstrap import CATALOGUE_GROUP
from paramserver.catalogue.leader import CatalogueLeader
from paramserver.catalogue.machine import CatalogueMachine
from paramserver.catalogue.state import Model, Node
from paramserver.hosting import Hosting
from paramserver.lab.simulation.calls import Caller, Service, address_of, node_of
from paramserver.lab.simulation.line import Line
from paramserver.observe.counters import Counters
from paramserver.rpc.admin import AdminService, Identity
from paramserver.rpc.calls import Calls
from paramserver.rpc.catalogue import CatalogueService
from paramserver.rpc.data import DataService
from paramserver.rpc.execute import EXECUTE, Executor, InternalService
from paramserver.rpc.freshness import Freshness
from paramserver.rpc.groups import Groups, Hosted, propose
from paramserver.rpc.hands import Answer, Reach, RemoteHands
from paramserver.rpc.orders import Orders
from paramserver.rpc.pull import Puller
from paramserver.rpc.reshape import ReshapeService
from paramserver.rpc.watch import Announced, Board, WatchService
from paramserver.shard.leader import ShardLeader
from paramserver.shard.machine import ShardMachine
from paramserver.shard.options import LeaderOptions
from paramserver.v1 import paramserver_pb2 as pb

COMPARE_MS = 1000


class World(Protocol):
    """What servers share."""

    cluster: Cluster
    lease_ms: int
    leader_options: LeaderOptions
    directories: dict[NodeId, pb.Directory]
    """What each node's disk holds of group 0's directory."""

    def service(self, node: NodeId) -> Service | None: ...

    def line(self, line: Line) -> None: ...

    def alarm(self, line: str) -> None: ...

    def decided(self, model: Model) -> None: ...


class Watched(CatalogueMachine):
    """Group 0's state machine; the world is told of each model as it is after a command, on every replica."""

    def __init__(self, data_groups: tuple[GroupId, ...], world: World) -> None:
        super().__init__(data_groups)
        self._world = world

    def _put(self, model: Model) -> None:
        super()._put(model)
        self._world.decided(model)


class InLoop:
    """A group's listener whose owner makes tasks: it hears of everything on the node's loop."""

    def __init__(self, loop: VirtualLoop, owner: GroupListener) -> None:
        self._loop = loop
        self._owner = owner

    def leading(self, term: int) -> None:
        with self._loop.running():
            self._owner.leading(term)

    def deposed(self, term: int) -> None:
        with self._loop.running():
            self._owner.deposed(term)

    def leader_changed(self, leader: ReplicaId, term: int) -> None:
        with self._loop.running():
            self._owner.leader_changed(leader, term)

    def applied(self, batch: Sequence[Applied]) -> None:
        with self._loop.running():
            self._owner.applied(batch)

    def restored(self, index: int) -> None:
        with self._loop.running():
            self._owner.restored(index)

    def handing_over(self, to: ReplicaId) -> None:
        with self._loop.running():
            self._owner.handing_over(to)

    def drained(self) -> bool:
        with self._loop.running():
            return self._owner.drained()

    def note(self) -> bytes:
        with self._loop.running():
            return self._owner.note()

    def noted(self, replica: ReplicaId, note: bytes) -> None:
        with self._loop.running():
            self._owner.noted(replica, note)


class SimulatedExecutor(Executor):
    """Asks other nodes over simulated calls."""

    def __init__(self, groups: Groups, local: InternalService, caller: Caller) -> None:
        super().__init__(groups, local, CLUSTER)
        self._caller = caller

    async def _remote(self, node: NodeId, request: pb.ExecuteRequest, timeout_s: float) -> pb.ExecuteResponse:
        method = EXECUTE.removeprefix("/paramserver.v1.")
        return pb.ExecuteResponse.FromString(
            await self._caller.unary(node, method, request.SerializeToString(), timeout_s)
        )


class SimulatedReach(Reach):
    """Unary calls to other nodes over simulated calls."""

    def __init__(self, caller: Caller) -> None:
        super().__init__()
        self._caller = caller

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
        name = method.removeprefix("/paramserver.v1.")
        return answer.FromString(
            await self._caller.unary(node_of(address), name, request.SerializeToString(), timeout_s)
        )


class _Everybody:
    """`hosting.Peers`: in the simulated network all know each other."""

    async def admit(self, node: NodeId, address: str, uuid: bytes) -> None:
        return None

    async def dismiss(self, node: NodeId) -> None:
        return None


class _Folder:
    """`hosting.Folder`. What the disk holds is found by the simulated process itself."""

    joined = True
    activated = True

    def __init__(self, uuid: bytes) -> None:
        self.uuid = uuid

    def activate(self) -> None:
        return None


class _Runtime:
    """`NodeRuntime`, as far as `Hosting` uses it: the simulated process keeps account of its replicas."""

    creations: Mapping[GroupId, Any] = {}

    def __init__(self, host: SimulatedNode) -> None:
        self._host = host

    @property
    def groups(self) -> Mapping[GroupId, Any]:
        return self._host.handles

    def create_replica(
        self, *, group: GroupId, replica: ReplicaId, configuration: Configuration, done: Callable[[Any], None], **_: Any
    ) -> None:
        self._host.create_replica(group, replica, configuration, done)

    def delete_replica(self, group: GroupId, replica: ReplicaId, done: Callable[[Any], None]) -> None:
        self._host.delete_replica(group, replica, done)

    def avoid(self, nodes: Iterable[NodeId]) -> None:
        """Who leads is left to elections and wishes here."""


async def _at_once(work: Callable[[], None]) -> None:
    work()


class SimulatedServer:
    def __init__(self, world: World, node: NodeId, layout: Mapping[GroupId, Configuration]) -> None:
        self._world = world
        self._node = node
        self._layout = layout
        self._host = world.cluster.nodes[node]
        self.life = self._host.life
        host, scheduler = self._host, world.cluster.scheduler

        def later(delay_us: int, action: Callable[[], None]) -> None:
            # A call of this life may be answered in the next one of its process: nothing of it goes on there.
            if host.life == self.life:
                host.later(delay_us, "", action)

        self.loop = virtual_loop(later, lambda: scheduler.now_us)
        self._addresses = {peer: address_of(peer) for peer in world.cluster.nodes}
        self._groups = Groups(node=node, addresses=self._addresses, layout=layout)
        self._freshness = Freshness(self._groups)
        self._board = Board()
        self._counters = Counters()
        self.shards: dict[GroupId, ShardLeader] = {}
        self._rooms: dict[GroupId, tuple[StateMachine, GroupListener]] = {}
        """Furnished for replicas that are being made."""
        runtime: Any = _Runtime(host)
        self._hosting = Hosting(
            groups=self._groups,
            runtime=runtime,
            peers=_Everybody(),
            folder=_Folder(uuid_of(node)),
            room=self._room,
            save=self._save,
            vacated=self._vacated,
            changed=self._board.directory,
            blocking=_at_once,
        )
        self._orders = Orders(
            self._hosting,
            self._groups,
            cluster=CLUSTER,
            node_uuid=uuid_of(node),
            term=lambda: self._groups.leader(CATALOGUE_GROUP)[1] if CATALOGUE_GROUP in self._groups.hosted else 0,
        )
        self._internal = InternalService(self._groups, CLUSTER, self._orders.order)
        self._caller = caller = Caller(
            world.cluster,
            f"n{node}",
            stream(world.cluster.seed, f"calls of node {node}.{self.life}"),
            later=later,
            service=world.service,
            keep=world.line,
        )
        data_groups = tuple(group for group in layout if group != CATALOGUE_GROUP)
        self.catalogue = Watched(data_groups, world)
        self._catalogue_leader = CatalogueLeader(
            self.catalogue,
            propose=self._propose_to_catalogue,
            confirm=lambda: self._freshness.confirm(CATALOGUE_GROUP),
            execute=SimulatedExecutor(self._groups, self._internal, caller),
            elsewhere=lambda: self._groups.elsewhere(CATALOGUE_GROUP),
            nodes=self._members,
            now_ms=lambda: scheduler.now_us // 1000,
            lease_ms=world.lease_ms,
            hands=self._hands,
            cluster=CLUSTER,
        )
        self.service = Service(self.loop, self._handlers())

    def begin(self) -> None:
        """All replicas that the disk holds were added."""
        with self.loop.running():
            self._hosting.begin()
            directory = self._world.directories.get(self._node)
            if directory is not None:
                self.loop.create_task(self._hosting.remember(directory), name="remember")

    def machine(self, group: GroupId) -> tuple[StateMachine, GroupListener]:
        """For the runtime: of a replica that an order makes, or that the disk holds."""
        if group in self._rooms:
            return self._rooms.pop(group)
        replica = self._world.cluster.roster.hosted(self._node, group)
        machine, listener = self._furnished(group, replica)
        handle: Any = _Handle(self._host.handles, group)
        self._groups.hosted[group] = Hosted(group, replica, handle, machine)
        return machine, listener

    def _room(self, group: GroupId, replica: ReplicaId) -> tuple[StateMachine, GroupListener]:
        machine, listener = self._furnished(group, replica)
        self._rooms[group] = machine, listener
        return machine, listener

    def _furnished(self, group: GroupId, replica: ReplicaId) -> tuple[StateMachine, GroupListener]:
        machine: StateMachine
        owner: GroupListener
        if group == CATALOGUE_GROUP:
            self.catalogue.reset()
            machine, owner = self.catalogue, self._catalogue_leader
        else:
            shard = ShardMachine(group)
            machine = shard
            owner = self.shards[group] = ShardLeader(
                machine=shard,
                replica=replica,
                voters=lambda: self._host.handles[group].voters,
                report=lambda to, content: self._host.handles[group].report(to, content),
                distrust=lambda reason: self._host.handles[group].distrust(reason),
                hold=lambda held: self._host.handles[group].hold_snapshots(held=held),
                propose=self._proposing(group),
                read_index=lambda done: self._host.handles[group].read_index(done),
                lanes=self._host.lanes,
                options=self._world.leader_options,
                address_of=lambda member: self._address_of(group, member),
                on_alarm=self._world.alarm,
                on_leading=lambda term: self._trace(f"serves group {group} in term {term}"),
            )
            self._compare_states(group, owner)
        return machine, InLoop(self.loop, Announced(group, owner, self._board))

    def _compare_states(self, group: GroupId, leader: ShardLeader) -> None:
        """For as long as this replica is here."""
        if self.shards.get(group) is not leader:
            return
        now_ms = self._world.cluster.scheduler.now_us // MS
        with self.loop.running():
            leader.tick(now_ms)
        self._host.later(COMPARE_MS * MS, "", lambda: self._compare_states(group, leader))

    def _vacated(self, group: GroupId) -> None:
        self._rooms.pop(group, None)
        self.shards.pop(group, None)
        if group == CATALOGUE_GROUP:
            self.catalogue.reset()

    def _save(self, told: pb.Directory) -> None:
        self._world.directories[self._node] = told

    def _address_of(self, group: GroupId, member: ReplicaId) -> str:
        handle = self._host.handles.get(group)
        node = handle.nodes.get(member, 0) if handle is not None else 0
        return self._groups.addresses.get(node, "")

    def _hands(self, term: int) -> RemoteHands:
        return RemoteHands(
            self._groups,
            SimulatedReach(self._caller),
            term=term,
            cluster=CLUSTER,
            nodes=lambda: {**self._members(), **self.catalogue.nodes},
            own_status=self._admin.status,
            own_order=self._orders.order,
        )

    def _trace(self, what: str) -> None:
        self._world.cluster.trace.add(f"n{self._node}", what)

    def _proposing(self, group: GroupId) -> Callable[[bytes | memoryview, int, Callable[[Outcome], None]], None]:
        return lambda payload, crc, done: self._host.handles[group].propose(payload, crc, done)

    async def _propose_to_catalogue(self, payload: bytes) -> Outcome:
        return await propose(self._host.handles[CATALOGUE_GROUP], payload)

    def _members(self) -> dict[NodeId, Node]:
        return {node: Node(node, address, uuid_of(node)) for node, address in self._addresses.items()}

    def _handlers(self) -> list[grpc.GenericRpcHandler]:
        calls = Calls(self._counters)
        self._admin = AdminService(
            identity=Identity(
                node=self._node,
                address=address_of(self._node),
                cluster=CLUSTER,
                node_uuid=uuid_of(self._node),
                incarnation=self.life,
                version="simulated",
                durability="fsync",
            ),
            groups=self._groups,
            catalogue=self.catalogue,
            alarms=tuple,
            counters=dict,
            gauges=dict,
            state=lambda: "removed" if self._hosting.removed else "serving",
            reshape=ReshapeService(self._catalogue_leader, self.catalogue),
        )
        puller = Puller(self._groups, self.shards, self._freshness)
        return [
            CatalogueService(
                leader=self._catalogue_leader, machine=self.catalogue, groups=self._groups, cluster=CLUSTER
            ).handlers(calls),
            DataService(leaders=self.shards, groups=self._groups, puller=puller, cluster=CLUSTER).handlers(calls),
            WatchService(self._board, node=self._node, address=address_of(self._node), cluster=CLUSTER).handlers(calls),
            self._admin.handlers(calls),
            self._internal.handlers(calls),
        ]

    @property
    def counters(self) -> Mapping[str, int]:
        return self._counters.all()


def uuid_of(node: NodeId) -> bytes:
    return bytes(15) + bytes((node,))


class _Handle:
    """A group's handle, which is only there once the group was added."""

    def __init__(self, handles: Mapping[GroupId, Any], group: GroupId) -> None:
        self._handles = handles
        self._group = group

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handles[self._group], name)
