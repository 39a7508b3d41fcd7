"""Real gRPC between transports in one event loop, on free loopback ports."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import grpc.aio

from consensus.core.interface import Heartbeat, NodeId
from consensus.transport.grpc.arguments import server_options
from consensus.transport.interface import Envelope
from consensus.transport.nodes import NodeTransport
from consensus.transport.options import TransportOptions

CLUSTER = b"cluster-for-test"
FAST = TransportOptions(reconnect_ms_min=20, reconnect_ms_max=50)


class Folder:
    """A data folder's identity, in memory."""

    def __init__(self, node: NodeId, *, cluster: bytes = CLUSTER, uuid: bytes = b"", activated: bool = False) -> None:
        self.cluster = cluster
        self.node = node
        self.uuid = uuid or bytes([node]) * 16
        self.peers: dict[NodeId, bytes] = {}
        self.activated = activated
        self.lives: dict[NodeId, tuple[int, bytes]] = {}

    def remember_peer(self, node: NodeId, uuid: bytes) -> None:
        self.peers[node] = uuid

    def replace_peer(self, node: NodeId, uuid: bytes) -> None:
        if self.peers.get(node) != uuid:
            self.lives.pop(node, None)
        self.peers[node] = uuid

    def forget_peer(self, node: NodeId) -> None:
        self.peers.pop(node, None)
        self.lives.pop(node, None)

    def meet(self, node: NodeId, uuid: bytes, incarnation: int, life: bytes) -> None:
        self.lives[node] = (incarnation, life)

    def activate(self) -> None:
        self.activated = True


class Inbox:
    """A `Receiver` that keeps everything."""

    def __init__(self) -> None:
        self.envelopes: list[tuple[NodeId, Envelope]] = []
        self.connections: list[tuple[NodeId, bool]] = []

    def received(self, node: NodeId, envelopes: Sequence[Envelope]) -> None:
        self.envelopes += [(node, envelope) for envelope in envelopes]

    def connection(self, node: NodeId, *, closed: bool) -> None:
        self.connections.append((node, closed))

    def rounds(self) -> list[int]:
        return [envelope.message.round for _, envelope in self.envelopes if isinstance(envelope.message, Heartbeat)]


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def addresses(count: int) -> dict[NodeId, str]:
    return {node: f"127.0.0.1:{port}" for node, port in enumerate(free_ports(count), start=1)}


class End:
    """One node: a server and a transport on it."""

    def __init__(
        self,
        folder: Folder,
        members: dict[NodeId, str],
        *,
        incarnation: int = 1,
        kernel_answers: bytes = b"",
        durability: str = "",
        options: TransportOptions = FAST,
    ) -> None:
        self.folder = folder
        self.members = members
        self.transport = NodeTransport(
            folder=folder,
            incarnation=incarnation,
            addresses=members,
            options=options,
            kernel_answers=kernel_answers,
            durability=durability,
        )
        self.inbox = Inbox()
        self.transport.bind(self.inbox)
        self.server = grpc.aio.server(options=server_options(options))
        self.transport.register(self.server)
        assert self.server.add_insecure_port(members[folder.node]) != 0

    async def start(self) -> None:
        await self.server.start()
        self.transport.start()

    async def stop(self) -> None:
        await self.transport.close()
        await self.server.stop(None)

    async def abort(self) -> None:
        """As sudden as it gets inside one process."""
        await self.server.stop(None)
        await self.transport.close()


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 (nobody there could set an event)
            await asyncio.sleep(0.002)


@asynccontextmanager
async def ends(count: int) -> AsyncIterator[list[End]]:
    """Connected to each other."""
    members = addresses(count)
    started = [End(Folder(node), members) for node in members]
    try:
        for end in started:
            await end.start()
        await until(lambda: all(len(end.transport.connected) == count - 1 for end in started))
        yield started
    finally:
        for end in started:
            with suppress(Exception):
                await end.stop()
