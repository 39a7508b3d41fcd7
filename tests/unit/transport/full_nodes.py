"""Whole nodes of consensus in one event loop: real gRPC, real log and snapshot files, real threads."""

import asyncio
import random
from contextlib import suppress
from pathlib import Path

import grpc.aio

from consensus.core.interface import Configuration, NodeId
from consensus.runtime import NodeRuntime, RuntimeOptions
from consensus.runtime.interface import Outcome
from consensus.runtime.threads import MonotonicClock, ThreadLanes, ThreadLogWriter, Ticker
from consensus.storage.checksum import crc32c
from consensus.storage.filesystem import OsFileSystem
from consensus.storage.identity import load_or_create
from consensus.storage.options import WalOptions
from consensus.storage.snapshots import SnapshotFiles
from consensus.storage.wal import Wal
from consensus.transport.grpc.arguments import server_options
from consensus.transport.nodes import NodeTransport
from tests.unit.runtime.cluster import Journal, Listener
from tests.unit.transport.network import CLUSTER, FAST, addresses, until

SEGMENT_BYTES = 1 << 20
GROUP = 1


class FullNode:
    def __init__(self, node: NodeId, members: dict[NodeId, str], folder: Path, options: RuntimeOptions) -> None:
        self.node = node
        self.members = members
        self.errors: list[BaseException] = []
        loop = asyncio.get_running_loop()
        filesystem, path = OsFileSystem(), str(folder / f"node-{node}")
        self.identity = load_or_create(filesystem, path, CLUSTER, node)
        wal, recovery = Wal.open(
            filesystem,
            f"{path}/wal",
            self.identity.identity(),
            WalOptions(segment_bytes=SEGMENT_BYTES, reserve_bytes=1 << 18),
        )
        self.writer = ThreadLogWriter(wal, loop.call_soon_threadsafe, fatal=self.errors.append)
        self.lanes = ThreadLanes(loop.call_soon_threadsafe, fatal=self.errors.append)
        self.transport = NodeTransport(
            folder=self.identity, incarnation=recovery.incarnation, addresses=members, options=FAST
        )
        self.runtime = NodeRuntime(
            node=node,
            recovery=recovery,
            writer=self.writer,
            snapshots=SnapshotFiles(filesystem, f"{path}/snapshots"),
            lanes=self.lanes,
            transport=self.transport,
            clock=MonotonicClock(),
            random=lambda group: random.Random(node * 1000 + group),
            options=options,
            fatal=self.errors.append,
        )
        self.machine, self.listener = Journal(), Listener()
        self.handle = self.runtime.add_group(
            group=GROUP,
            replica=node,
            configuration=Configuration(tuple(sorted(members))),
            nodes={member: member for member in members},
            machine=self.machine,
            listener=self.listener,
        )
        self.ticker = Ticker(self.runtime, tick_ms=options.tick_ms)
        self.server = grpc.aio.server(options=server_options(FAST))
        self.transport.register(self.server)
        self.server.add_insecure_port(members[node])

    async def start(self) -> None:
        await self.server.start()
        self.transport.start()
        await self.transport.introduced()
        self.runtime.start()
        self.ticker.start()

    async def stop(self) -> None:
        """Sudden: connections first, nothing flushed on purpose."""
        self.ticker.stop()
        self.runtime.stop()
        await self.server.stop(None)
        await self.transport.close()
        await asyncio.to_thread(self.writer.close)
        await asyncio.to_thread(self.lanes.close)


class FullCluster:
    def __init__(self, folder: Path, options: RuntimeOptions | None = None, count: int = 3) -> None:
        self.folder = folder
        self.options = options or RuntimeOptions()
        self.members = addresses(count)
        self.nodes: dict[NodeId, FullNode] = {}

    async def __aenter__(self) -> "FullCluster":
        for node in self.members:
            self.nodes[node] = FullNode(node, self.members, self.folder, self.options)
        await asyncio.gather(*(node.start() for node in self.nodes.values()))
        return self

    async def __aexit__(self, *_: object) -> None:
        for node in list(self.nodes.values()):
            with suppress(Exception):
                await node.stop()
            assert node.errors == []

    async def start(self, node: NodeId) -> FullNode:
        started = self.nodes[node] = FullNode(node, self.members, self.folder, self.options)
        await started.start()
        return started

    async def stop(self, node: NodeId) -> None:
        await self.nodes.pop(node).stop()

    async def leader(self) -> FullNode:
        await until(lambda: sum(node.handle.ready_to_serve for node in self.nodes.values()) == 1)
        return next(node for node in self.nodes.values() if node.handle.ready_to_serve)

    async def propose(self, payload: bytes) -> Outcome:
        leader = await self.leader()
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        leader.handle.propose(payload, crc32c(payload), outcome.set_result)
        return await asyncio.wait_for(outcome, 5)

    def agree(self, count: int) -> bool:
        states = {tuple(node.machine.commands) for node in self.nodes.values()}
        return len(states) == 1 and len(next(iter(states))) == count
