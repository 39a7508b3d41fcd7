"""A server of the simulated cluster: all its parts but disk, network and threads, put together as `paramserver.node`
does it.

Owns one life of one node. Invariant: what a call or a group's listener sets in motion runs on this life's event loop.
Must not know: workers, faults.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import grpc

from consensus.core.interface import Configuration, GroupId, NodeId, ReplicaId
from consensus.runtime.interface import Applied, GroupListener, Outcome, StateMachine
from consensus.simulation.cluster import Cluster
from consensus.simulation.loop import VirtualLoop, virtual_loop
from consensus.simulation.node import CLUSTER
from consensus.simulation.schedule import MS, stream
from paramserver.catalogue.bootstrap import CATALOGUE_GROUP
from paramserver.catalogue.leader import CatalogueLeader
from paramserver.catalogue.machine import CatalogueMachine
from paramserver.catalogue.state import Node
from paramserver.lab.simulation.calls import Caller, Service, address_of
from paramserver.lab.simulation.line import Line
from paramserver.observe.counters import Counters
from paramserver.rpc.calls import Calls
from paramserver.rpc.catalogue import CatalogueService
from paramserver.rpc.data import DataService
from paramserver.rpc.execute import EXECUTE, Executor, InternalService
from paramserver.rpc.freshness import Freshness
from paramserver.rpc.groups import Groups, Hosted, propose
from paramserver.rpc.pull import Puller
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

    def service(self, node: NodeId) -> Service | None: ...

    def line(self, line: Line) -> None: ...

    def alarm(self, line: str) -> None: ...


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


class SimulatedServer:
    def __init__(self, world: World, node: NodeId, layout: Mapping[GroupId, Configuration]) -> None:
        self._world = world
        self._node = node
        self._layout = layout
        self._host = world.cluster.nodes[node]
        self.life = self._host.life
        host, scheduler = self._host, world.cluster.scheduler
        self.loop = virtual_loop(lambda delay_us, action: host.later(delay_us, "", action), lambda: scheduler.now_us)
        self._addresses = {peer: address_of(peer) for peer in world.cluster.nodes}
        self._groups = Groups(node=node, addresses=self._addresses, layout=layout)
        self._freshness = Freshness(self._groups)
        self._board = Board()
        self._counters = Counters()
        self.shards: dict[GroupId, ShardLeader] = {}
        self._internal = InternalService(self._groups, CLUSTER)
        caller = Caller(
            world.cluster,
            f"n{node}",
            stream(world.cluster.seed, f"calls of node {node}.{self.life}"),
            later=lambda delay_us, action: host.later(delay_us, "", action),
            service=world.service,
            keep=world.line,
        )
        data_groups = tuple(group for group in layout if group != CATALOGUE_GROUP)
        self.catalogue = CatalogueMachine(data_groups)
        self._catalogue_leader = CatalogueLeader(
            self.catalogue,
            propose=self._propose_to_catalogue,
            confirm=lambda: self._freshness.confirm(CATALOGUE_GROUP),
            execute=SimulatedExecutor(self._groups, self._internal, caller),
            elsewhere=lambda: self._groups.elsewhere(CATALOGUE_GROUP),
            nodes=self._members,
            now_ms=lambda: scheduler.now_us // 1000,
            lease_ms=world.lease_ms,
        )
        self.service = Service(self.loop, self._handlers())

    def machine(self, group: GroupId) -> tuple[StateMachine, GroupListener]:
        """For the runtime. Each group is asked for once a life."""
        machine: StateMachine
        owner: GroupListener
        if group == CATALOGUE_GROUP:
            machine, owner = self.catalogue, self._catalogue_leader
        else:
            shard = ShardMachine(group)
            machine = shard
            owner = self.shards[group] = ShardLeader(
                machine=shard,
                replica=self._node,
                propose=self._proposing(group),
                lanes=self._host.lanes,
                options=self._world.leader_options,
                voters=lambda: self._host.handles[group].voters,
                report=lambda to, content: self._host.handles[group].report(to, content),
                distrust=lambda reason: self._host.handles[group].distrust(reason),
                address_of=address_of,
                on_alarm=self._world.alarm,
                on_leading=lambda term: self._trace(f"serves group {group} in term {term}"),
            )
            self._compare_states(owner)
        handle: Any = _Handle(self._host.handles, group)
        self._groups.hosted[group] = Hosted(group, self._node, handle, machine)
        return machine, InLoop(self.loop, Announced(group, owner, self._board))

    def _compare_states(self, leader: ShardLeader) -> None:
        """For as long as this life lasts."""
        now_ms = self._world.cluster.scheduler.now_us // MS
        with self.loop.running():
            leader.tick(now_ms)
        self._host.later(COMPARE_MS * MS, "", lambda: self._compare_states(leader))

    def _trace(self, what: str) -> None:
        self._world.cluster.trace.add(f"n{self._node}", what)

    def _proposing(self, group: GroupId) -> Callable[[bytes | memoryview, int, Callable[[Outcome], None]], None]:
        return lambda payload, crc, done: self._host.handles[group].propose(payload, crc, done)

    async def _propose_to_catalogue(self, payload: bytes) -> Outcome:
        return await propose(self._host.handles[CATALOGUE_GROUP], payload)

    def _members(self) -> dict[NodeId, Node]:
        return {node: Node(node, address, bytes(15) + bytes((node,))) for node, address in self._addresses.items()}

    def _handlers(self) -> list[grpc.GenericRpcHandler]:
        calls = Calls(self._counters)
        hosts_catalogue = self._node in self._layout[CATALOGUE_GROUP].voters
        catalogue = self.catalogue if hosts_catalogue else None
        puller = Puller(self._groups, self.shards, self._freshness)
        return [
            CatalogueService(
                leader=self._catalogue_leader, machine=catalogue, groups=self._groups, cluster=CLUSTER
            ).handlers(calls),
            DataService(leaders=self.shards, groups=self._groups, puller=puller, cluster=CLUSTER).handlers(calls),
            WatchService(self._board, node=self._node, address=address_of(self._node), cluster=CLUSTER).handlers(calls),
            self._internal.handlers(calls),
        ]

    @property
    def counters(self) -> Mapping[str, int]:
        return self._counters.all()


class _Handle:
    """A group's handle, which is only there once the group was added."""

    def __init__(self, handles: Mapping[GroupId, Any], group: GroupId) -> None:
        self._handles = handles
        self._group = group

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handles[self._group], name)
