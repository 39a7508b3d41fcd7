"""A server, wired together: the composition root.

Owns the parts, and the order in which they start (groups, peers, service) and stop. Invariants: no group runs before
every member holds this folder's uuid (RULES I2); one event loop serves everything, and disk, sums and apply have
threads of their own (C3). Must not know: what any of the parts does, ports, signals.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import os
import random
from collections.abc import Iterator
from functools import partial

import grpc.aio

from consensus.core.interface import GroupId, NodeId, ReplicaId
from consensus.runtime import GroupHandle, NodeRuntime
from consensus.runtime.behind import Behind
from consensus.runtime.interface import APPLY_LANE, GroupListener, Outcome, StateMachine
from consensus.runtime.mailbox import Mailbox
from consensus.runtime.threads import MonotonicClock, ThreadLanes, ThreadLogWriter, Ticker, end_process
from consensus.storage import lifemark
from consensus.transport.errors import FolderOutdated, FolderReplaced, IntroductionRefused
from consensus.transport.nodes import NodeTransport
from consensus.transport.options import TransportOptions
from paramserver import memory
from paramserver.alarms import Alarms
from paramserver.catalogue.bootstrap import CATALOGUE_GROUP, data_groups, layout
from paramserver.catalogue.leader import CatalogueLeader
from paramserver.catalogue.machine import CatalogueMachine
from paramserver.catalogue.state import Node as Member
from paramserver.config import REPLICATED, NodeConfig
from paramserver.directory import save as save_directory
from paramserver.disk import Disk
from paramserver.hosting import Hosting
from paramserver.injection.control import Injection
from paramserver.leaving import hand_over
from paramserver.observe.counters import Counters
from paramserver.observe.lag import LoopLag
from paramserver.observe.load import Load
from paramserver.observe.process import resident_bytes
from paramserver.optim.known_answers import check_arithmetic, known_answers
from paramserver.rpc.admin import AdminService, Identity
from paramserver.rpc.admission import Admission, Busy
from paramserver.rpc.calls import Calls
from paramserver.rpc.catalogue import CatalogueService
from paramserver.rpc.data import DataService
from paramserver.rpc.execute import Executor, InternalService
from paramserver.rpc.freshness import Freshness
from paramserver.rpc.groups import Groups, propose
from paramserver.rpc.hands import WAITING, Reach, RemoteHands
from paramserver.rpc.orders import Orders
from paramserver.rpc.pull import Puller
from paramserver.rpc.reshape import ReshapeService
from paramserver.rpc.watch import Announced, Board, WatchService
from paramserver.shard.gathering import SUM_LANE
from paramserver.shard.leader import ShardLeader
from paramserver.shard.machine import ShardMachine
from paramserver.shard.window import SumWindow
from paramserver.starting import CannotStart, cannot_bind

log = logging.getLogger("paramserver")

STOP_GRACE_S = 0.3
"""What calls that are under way get at a clean stop."""
COMPARE_S = 1.0
"""How often memory that is not written to is looked at; LeaderOptions.scrub_period_ms says how much of it."""
CONNECT_CHECK_MS = 5
CONNECT_MS = 500
"""How long a starting node waits for its peers' connections before it takes part without them."""
REMIND_S = 10.0
"""How often a node that waits to be admitted says so."""


class Node:
    """All parts of one server, on one event loop."""

    def __init__(
        self,
        config: NodeConfig,
        disk: Disk,
        server: grpc.aio.Server,
        transport_options: TransportOptions,
        loop: asyncio.AbstractEventLoop,
        injection: Injection | None = None,
    ) -> None:
        self._config = config
        self._injection = injection
        self._disk = disk
        self._server = server
        self._cluster = disk.identity.cluster
        self._counters = Counters()
        self._lag = LoopLag()
        self._load = Load()
        self._board = Board()
        self._clock = MonotonicClock()
        self._tasks: list[asyncio.Task[None]] = []
        mailbox = Mailbox(loop.call_soon_threadsafe)
        self._writer = ThreadLogWriter(
            disk.wal,
            mailbox.post,
            flush_bytes_max=config.wal_options().flush_bytes_max,
            behind=Behind() if config.durability == REPLICATED else None,
            failed=partial(lifemark.doubt, disk.filesystem, config.data_dir),
        )
        self._lanes = ThreadLanes(mailbox.post, at_start=_check_lane)
        self._transport = NodeTransport(
            folder=disk.identity,
            incarnation=disk.recovery.incarnation,
            addresses={**config.members, config.node: config.address},
            options=transport_options,
            kernel_answers=known_answers(),
            durability=config.durability,
            dial=config.dial,
            peer_listen=config.peer_bind,
        )
        options = config.runtime_options()
        self._runtime = NodeRuntime(
            node=config.node,
            recovery=disk.recovery,
            writer=self._writer,
            snapshots=disk.snapshots,
            lanes=self._lanes,
            transport=self._transport,
            clock=self._clock,
            random=lambda _: random.Random(os.urandom(16)),
            options=options,
            fatal=end_process,
        )
        mailbox.together = self._runtime.input
        self._ticker = Ticker(self._runtime, tick_ms=options.tick_ms)
        addresses = {**config.members, config.node: config.address}
        self._groups = Groups(node=config.node, addresses=addresses, layout=layout(config.members, config.groups))
        self._freshness = Freshness(self._groups)
        self._shards: dict[GroupId, ShardLeader] = {}
        self._leader_options = config.leader_options()
        self._room_for_sums = SumWindow(self._leader_options.window_bytes)
        self._catalogue = CatalogueMachine(data_groups(config.members, config.groups))
        self._hosting = Hosting(
            groups=self._groups,
            runtime=self._runtime,
            peers=self._transport,
            folder=disk.identity,
            room=self._room,
            save=lambda told: save_directory(disk.filesystem, config.data_dir, told),
            vacated=self._vacated,
            changed=self._board.directory,
        )
        self._orders = Orders(
            self._hosting,
            self._groups,
            cluster=self._cluster,
            node_uuid=disk.identity.uuid,
            term=lambda: self._groups.leader(CATALOGUE_GROUP)[1] if CATALOGUE_GROUP in self._groups.hosted else 0,
        )
        self._internal = InternalService(self._groups, self._cluster, self._orders.order)
        self._reach = Reach(config.dial)
        self._executor = Executor(self._groups, self._internal, self._cluster, config.dial)
        self._catalogue_leader = CatalogueLeader(
            self._catalogue,
            propose=self._propose_to_catalogue,
            confirm=lambda: self._freshness.confirm(CATALOGUE_GROUP),
            execute=self._executor,
            elsewhere=lambda: self._groups.elsewhere(CATALOGUE_GROUP),
            nodes=self._members,
            now_ms=self._clock.now_ms,
            lease_ms=config.lease_ms,
            hands=self._hands,
            cluster=self._cluster,
        )
        self._alarms = Alarms(
            config=config,
            groups=self._groups,
            writer=self._writer,
            introductions=self._transport.introductions,
            removed=lambda: self._hosting.removed,
            others=self._complaints,
        )
        self._admin = self._register_services()

    # --- life

    async def start(self, stop: asyncio.Event) -> None:
        """Returns when this node serves, or when `stop` is set before. Raises `CannotStart`."""
        if self._disk.directory is not None:
            await self._hosting.remember(self._disk.directory)
            if self._hosting.removed:
                raise CannotStart(self._was_removed())
        await self._server.start()
        if not self._waiting:
            self._transport.start()
        self._tasks.append(asyncio.create_task(self._lag.run(), name="loop lag"))
        self._tasks.append(asyncio.create_task(self._compare_states(), name="comparing states"))
        self._tasks.append(asyncio.create_task(self._alarms.tell_full_disk(), name="telling of a full disk"))
        introduced = asyncio.create_task(self._introduced())
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({introduced, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not introduced.done():
            introduced.cancel()
            return
        introduced.result()
        await self._peers_connected()
        try:
            self._transport.check_folder()
        except FolderOutdated as error:
            raise CannotStart(str(error)) from None
        self._hosting.begin()
        self._runtime.start()
        self._ticker.start()
        address = self._config.address
        print(f"ready node={self._config.node} address={address} cluster={self._cluster.hex()}", flush=True)

    def _was_removed(self) -> str:
        config, uuid = self._config, self._disk.identity.uuid.hex()
        return (
            f"node {config.node} was removed from the cluster, and its data folder {uuid} never takes part again; to "
            f"bring the node back, start it with an empty folder and --join {config.address}, then: "
            f"paramserver node add {config.node}={config.address} --servers ..."
        )

    async def _compare_states(self) -> None:
        """Of blocks that nothing is written to, too (RULES D1)."""
        while True:
            await asyncio.sleep(COMPARE_S)
            self._load.sample(self._clock.now_ms() / 1000)
            for leader in tuple(self._shards.values()):
                leader.tick(self._clock.now_ms())

    async def serve(self, stop: asyncio.Event) -> None:
        """Until `stop` is set. Raises `CannotStart` when a member that was away at the start has met a later life of
        this folder: from then on it would only be in the way."""
        stopped = asyncio.create_task(stop.wait())
        outdated = asyncio.create_task(self._transport.outdated())
        await asyncio.wait({stopped, outdated}, return_when=asyncio.FIRST_COMPLETED)
        for task in (stopped, outdated):
            task.cancel()
        if outdated.done() and not stop.is_set():
            raise CannotStart(str(outdated.result()))

    async def _peers_connected(self) -> None:
        """Give connections a moment: a first campaign that nobody hears only delays the next, and moves leadership away
        from the preferred node (C6)."""
        peers = set(self._groups.addresses) - {self._config.node}
        for _ in range(CONNECT_MS // CONNECT_CHECK_MS):
            if peers <= self._transport.connected:
                return
            await asyncio.sleep(CONNECT_CHECK_MS / 1000)

    async def stop(self) -> None:
        """Everything that was acknowledged is durable already; what waits gets told, and the log is closed clean."""
        log.info("stopping")
        await hand_over(self._runtime.groups, self._transport.connected, self._groups.nodes)
        self._runtime.stop()
        self._ticker.stop()
        for task in self._tasks:
            task.cancel()
        await self._server.stop(STOP_GRACE_S)
        await self._transport.close()
        await self._executor.close()
        await self._reach.close()
        loop = asyncio.get_running_loop()
        if await loop.run_in_executor(None, self._writer.close):
            await loop.run_in_executor(None, lifemark.end, self._disk.filesystem, self._config.data_dir)
        await loop.run_in_executor(None, self._lanes.close)
        log.info("stopped")

    async def _introduced(self) -> None:
        def waiting(missing: list[NodeId]) -> None:
            names = ", ".join(f"node {node} ({self._config.members[node]})" for node in missing)
            log.info("a new folder: all members must be up once; waiting for %s", names)

        if self._waiting:
            await self._admitted()
            self._transport.start()
            return
        try:
            await self._transport.introduced(waiting)
        except FolderReplaced as error:
            # The others know this node with another folder. It may come back with this one, but as somebody who holds
            # nothing: that is written down before anybody can admit it (RULES I1, I2).
            log.error("%s", error)
            await asyncio.to_thread(self._disk.identity.join)
            await self._admitted()
        except IntroductionRefused as error:
            raise CannotStart(str(error)) from None

    async def _admitted(self) -> None:
        """A folder that came after the bootstrap waits for group 0 (RULES I2)."""
        config = self._config
        what = f"replace {config.node}" if config.node in config.members else "add"
        others = ",".join(address for node, address in sorted(config.members.items()) if node != config.node)
        command = f"paramserver node {what} {config.node}={config.address} --servers {others}"
        while not self._hosting.admitted.is_set():
            log.warning("waiting to be admitted to the cluster; this admits it: %s", command)
            try:
                async with asyncio.timeout(REMIND_S):
                    await self._hosting.admitted.wait()
            except TimeoutError:
                continue
        log.info("admitted to the cluster")

    @property
    def _waiting(self) -> bool:
        return self._disk.identity.joined and not self._hosting.admitted.is_set()

    # --- groups

    def _room(self, group: GroupId, replica: ReplicaId) -> tuple[StateMachine, GroupListener]:
        machine, listener = self._furnished(group, replica)
        return machine, Announced(group, listener, self._board)

    def _vacated(self, group: GroupId) -> None:
        self._shards.pop(group, None)
        if group == CATALOGUE_GROUP:
            self._catalogue.reset()

    def _furnished(self, group: GroupId, replica: ReplicaId) -> tuple[StateMachine, GroupListener]:
        if group == CATALOGUE_GROUP:
            self._catalogue.reset()
            return self._catalogue, self._catalogue_leader
        machine = ShardMachine(group)
        leader = ShardLeader(
            machine=machine,
            replica=replica,
            propose=lambda payload, crc, done: self._handle(group).propose(payload, crc, done),
            read_index=lambda done: self._handle(group).read_index(done),
            lanes=self._lanes,
            options=self._leader_options,
            room=self._room_for_sums,
            voters=lambda: self._handle(group).voters,
            report=lambda to, content: self._handle(group).report(to, content),
            distrust=lambda reason: self._handle(group).distrust(reason),
            hold=lambda held: self._handle(group).hold_snapshots(held=held),
            address_of=lambda member: self._address_of(group, member),
            on_alarm=lambda line: log.error("alarm: %s", line),
            on_leading=lambda term: log.info("this node leads group %d in term %d", group, term),
        )
        self._shards[group] = leader
        self._counters.include("", lambda: leader.counters)
        return machine, leader

    def _complaints(self) -> Iterator[str]:
        """Of the parts that tell of themselves."""
        if self._injection is not None:
            yield self._injection.alarm()
        for leader in self._shards.values():
            yield from leader.alarms
        yield from self._catalogue_leader.troubles()

    def _handle(self, group: GroupId) -> GroupHandle:
        return self._runtime.groups[group]

    def _address_of(self, group: GroupId, member: ReplicaId) -> str:
        handle = self._runtime.groups.get(group)
        node = handle.nodes.get(member, 0) if handle is not None else 0
        return self._groups.addresses.get(node, "")

    def _hands(self, term: int) -> RemoteHands:
        return RemoteHands(
            self._groups,
            self._reach,
            term=term,
            cluster=self._cluster,
            nodes=lambda: {**self._members(), **self._catalogue.nodes},
            own_status=self._admin.status,
            own_order=self._orders.order,
        )

    async def _propose_to_catalogue(self, payload: bytes) -> Outcome:
        return await propose(self._handle(CATALOGUE_GROUP), payload)

    def _members(self) -> dict[NodeId, Member]:
        """As far as their folders are known here."""
        uuids = {**self._disk.identity.peers, self._config.node: self._disk.identity.uuid}
        addresses = self._groups.addresses
        return {node: Member(node, addresses[node], uuid) for node, uuid in uuids.items() if node in addresses}

    # --- services

    def _register_services(self) -> AdminService:
        config, cluster = self._config, self._cluster
        limits = config.limits()
        busy = Busy(limits)
        admission = Admission(limits, busy)
        calls = Calls(self._counters, admission, part_ms=limits.reader_timeout_ms)
        always = Calls(self._counters)
        catalogue = self._catalogue
        puller = Puller(self._groups, self._shards, self._freshness, limits, busy)
        data = DataService(
            leaders=self._shards,
            groups=self._groups,
            puller=puller,
            cluster=cluster,
            limits=limits,
            busy=busy,
            load=self._load,
        )

        def gauges() -> dict[str, float]:
            return {
                **self._lag.gauges(),
                "control_lag_ms_max": self._ticker.lag_ms_max,
                **data.gauges(),
                "watchers": len(self._board),
                "calls": admission.calls,
                "connections": admission.connections,
                "retry_after_ms": busy.retry_after_ms,
                "sums_bytes": self._room_for_sums.bytes,
                "sums_bytes_most": self._room_for_sums.bytes_most,
                "memory_bytes": resident_bytes(os.getpid()),
                "memory_bytes_bound": sum(
                    self.memory(
                        streams=data.streams + data.initial_streams,
                        calls=admission.calls,
                        connections=admission.connections,
                    ).values()
                ),
            }

        admin = AdminService(
            identity=Identity(
                node=config.node,
                address=config.address,
                cluster=cluster,
                node_uuid=self._disk.identity.uuid,
                incarnation=self._disk.recovery.incarnation,
                version=_version(),
                durability=self._config.durability,
                zone=config.zone,
            ),
            groups=self._groups,
            catalogue=catalogue,
            alarms=self._alarms.lines,
            counters=self._counters.all,
            gauges=gauges,
            state=lambda: WAITING if self._waiting else "removed" if self._hosting.removed else "serving",
            disk_full=self._writer.full,
            reshape=ReshapeService(self._catalogue_leader, catalogue),
            load=self._load,
        )
        self._counters.include("loop_lag_", self._lag.counts)
        self._counters.include("peers_dropped_", lambda: self._transport.dropped)
        self._counters.include("messages_dropped_", lambda: self._runtime.dropped)
        self._counters.include("wal_", lambda: {"syncs": self._writer.syncs})
        try:
            self._transport.register(self._server)
        except OSError as error:
            raise cannot_bind(self._config.peer_bind, error.strerror or str(error)) from None
        self._server.add_generic_rpc_handlers(
            (
                CatalogueService(
                    leader=self._catalogue_leader,
                    machine=catalogue,
                    groups=self._groups,
                    cluster=cluster,
                    zone=config.zone,
                ).handlers(calls),
                data.handlers(calls),
                WatchService(
                    self._board, node=config.node, address=config.address, cluster=cluster, zone=config.zone
                ).handlers(calls),
                admin.handlers(always),
                self._internal.handlers(always),
            )
        )
        return admin

    def memory(self, *, streams: int, calls: int, connections: int) -> dict[str, int]:
        """What this node's memory is bounded by now, by term (docs/operations.md)."""
        hosted = [one.machine for one in self._groups.hosted.values()]
        shards = [shard for machine in hosted if isinstance(machine, ShardMachine) for shard in machine.shards.values()]
        specs = [shard.info.create.spec for shard in shards]
        return memory.bound(
            self._config,
            states=[machine.size_bytes() for machine in hosted],
            groups=len(hosted),
            shards=len(shards),
            ranks=max((spec.ranks for spec in specs), default=0),
            block_bytes=max((spec.block_bytes for spec in specs), default=0),
            peers=len(self._groups.addresses) - 1,
            streams=streams,
            calls=calls,
            connections=connections,
        )


def _check_lane(lane: str) -> None:
    if lane in (APPLY_LANE, SUM_LANE):
        check_arithmetic()


def _version() -> str:
    try:
        return importlib.metadata.version("paramserver")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
