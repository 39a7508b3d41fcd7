"""`Transport` between the nodes of a cluster: first contact over grpc.aio, frames over sockets beside it.

Owns one link to each peer, the listener, and what both say about whether a peer is there. Invariants: a peer counts as
connected while this node's control connection to it and one of its own to this node stand; each change is reported
once; a new life of a peer is reported as a break first. Must not know: groups, what messages mean, who owns the server.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import grpc.aio

from consensus.core.interface import NodeId
from consensus.transport.errors import FolderOutdated, FolderReplaced, IntroductionRefused
from consensus.transport.grpc.introduction import Folder, Introductions
from consensus.transport.grpc.service import PeerService
from consensus.transport.interface import Channel, Envelope, Receiver
from consensus.transport.options import TransportOptions
from consensus.transport.peer import PeerLink
from consensus.transport.sockets.receiving import FrameListener
from consensus.transport.sockets.wire import Origin

LIFE_BYTES = 8
REPORT_S = 1.0
"""How often a new folder says whom it waits for."""


class NodeTransport:
    """Made on the event loop's thread, used there only.

    `addresses` holds every member, this node too. Register it on the node's server, start that, then `start()`, then
    wait for `introduced()`, and only then start the runtime (RULES I2)."""

    def __init__(
        self,
        *,
        folder: Folder,
        incarnation: int,
        addresses: Mapping[NodeId, str],
        options: TransportOptions | None = None,
        kernel_answers: bytes = b"",
        durability: str = "",
        dial: Mapping[str, str] | None = None,
        peer_listen: str = "",
    ) -> None:
        """`kernel_answers`, `durability`: what peers are compared by (`Introductions`). `dial`: addresses that are
        reached at another one from here (a proxy, a tunnel); who is where, and what others are told, is not changed by
        it. `peer_listen`: host:port for what nodes say to each other; the host of this node's address and any free port
        unless given. Raises `ValueError` for options that can't be, or when this node is not in `addresses`."""
        options = options or TransportOptions()
        problems = options.validate()
        if folder.node not in addresses:
            problems.append(f"node {folder.node} is not among the members {sorted(addresses)}")
        if problems:
            raise ValueError("; ".join(problems))
        self.dropped: Counter[str] = Counter()
        """What was lost or refused, by reason."""
        self.introductions = Introductions(
            folder,
            incarnation=incarnation,
            members=addresses,
            kernel_answers=kernel_answers,
            life=os.urandom(LIFE_BYTES),
            durability=durability,
        )
        self._receiver: Receiver | None = None
        self._node = folder.node
        self._peer_listen = peer_listen or f"{addresses[folder.node].rpartition(':')[0]}:0"
        self._origin = Origin(folder.cluster, folder.node, folder.uuid, incarnation)
        self._options = options
        self._started = False
        self._dial = dict(dial or {})
        self._links = {node: self._link(node, address) for node, address in addresses.items() if node != folder.node}
        self._streams: Counter[NodeId] = Counter()
        """Control connections of each peer to this node."""
        self._lives: dict[NodeId, int] = {}
        self._connected: set[NodeId] = set()
        self.service = PeerService(introductions=self.introductions, dropped=self.dropped)
        self._listener = FrameListener(
            node=folder.node,
            introductions=self.introductions,
            incoming=self,
            options=options,
            dropped=self.dropped,
        )

    # --- Transport --------------------------------------------------------------------------------------------------

    def bind(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._listener.receiver = receiver

    def send(self, node: NodeId, channel: Channel, envelopes: Sequence[Envelope]) -> None:
        link = self._links.get(node)
        if link is None:
            self.dropped["no_such_peer"] += len(envelopes)
            return
        link.send(channel, envelopes)

    # --- life -------------------------------------------------------------------------------------------------------

    def register(self, server: grpc.aio.Server) -> None:
        """Take first contacts on the node's server, which must be made with `server_options`, and all else on a port
        beside it. Raises `OSError` when that can't be bound."""
        server.add_generic_rpc_handlers((self.service.handlers(),))
        self.introductions.peer_port = self._listener.listen(self._peer_listen)

    def start(self) -> None:
        """Dial the peers, for ever."""
        self._started = True
        for link in self._links.values():
            link.start()

    async def introduced(self, waiting: Callable[[list[NodeId]], None] | None = None) -> None:
        """Return when this node may vote and acknowledge: at once on a folder that every member confirmed before, else
        when all have. `waiting` is called about once a second with those who are missing. Raises `IntroductionRefused`
        when a member refuses this node."""
        introductions = self.introductions
        while not introductions.activated:
            if introductions.refusals:
                raise self._refused()
            missing = introductions.missing()
            if not missing:
                await introductions.activate()
                return
            introductions.changed.clear()
            try:
                async with asyncio.timeout(REPORT_S):
                    await introductions.changed.wait()
            except TimeoutError:
                if waiting is not None:
                    waiting(missing)

    def _refused(self) -> IntroductionRefused:
        introductions = self.introductions
        text = "; ".join(text for _, text in sorted(introductions.refusals.items()))
        if introductions.outdated.is_set():
            return FolderOutdated(text)
        return FolderReplaced(text) if introductions.other_folder else IntroductionRefused(text)

    async def outdated(self) -> FolderOutdated:
        """Returns when a member has met a later life of this node's folder, which then must not take part; else
        never."""
        await self.introductions.outdated.wait()
        return FolderOutdated("; ".join(text for _, text in sorted(self.introductions.refusals.items())))

    def check_folder(self) -> None:
        """Raises `FolderOutdated` if a member said so already."""
        if self.introductions.outdated.is_set():
            raise self._refused()

    async def close(self) -> None:
        self._listener.close()
        await asyncio.gather(*(link.close() for link in self._links.values()))

    @property
    def connected(self) -> frozenset[NodeId]:
        """Peers whose control connections stand both ways."""
        return frozenset(self._connected)

    # --- members that come and go -------------------------------------------------------------------------------------

    async def admit(self, node: NodeId, address: str, uuid: bytes) -> None:
        """That node belongs to the cluster, at that address, under that folder and no other: whoever decides on members
        said so. Durable when it returns; then it is dialled, and another folder of that number is refused."""
        if node == self._node:
            raise ValueError(f"node {node} is this node")
        link, known = self._links.get(node), self.introductions.known(node)
        if link is not None and link.address == address and known == uuid:
            return
        await self.introductions.admit(node, address, uuid)
        if link is not None and link.address == address and known is None:
            return  # it was about to introduce itself
        await self._unlink(node)
        link = self._links[node] = self._link(node, address)
        if self._started:
            link.start()

    async def dismiss(self, node: NodeId) -> None:
        """That node takes part no more: it is not dialled, and refused when it calls. Durable when it returns."""
        await self.introductions.dismiss(node)
        await self._unlink(node)

    def _link(self, node: NodeId, address: str) -> PeerLink:
        return PeerLink(
            node=node,
            address=address,
            dial=self._dial,
            origin=self._origin,
            introductions=self.introductions,
            options=self._options,
            dropped=self.dropped,
            changed=self._link_changed(node),
        )

    async def _unlink(self, node: NodeId) -> None:
        link = self._links.pop(node, None)
        # The next folder of that number counts its lives anew.
        self._lives.pop(node, None)
        self._judge(node)
        if link is not None:
            await link.close()

    # --- who is there -----------------------------------------------------------------------------------------------

    def _link_changed(self, node: NodeId) -> Callable[[bool], None]:
        return lambda _: self._judge(node)

    def incoming(self, node: NodeId, *, incarnation: int, opened: bool) -> None:
        """A control connection of a peer's was opened, or ended."""
        if opened and incarnation > self._lives.get(node, 0):
            self._lives[node] = incarnation
            self._report(node, connected=False)
        self._streams[node] += 1 if opened else -1
        if opened and node in self._links:
            self._links[node].heard_of()
        self._judge(node)

    def _judge(self, node: NodeId) -> None:
        link = self._links.get(node)
        self._report(node, connected=link is not None and link.up and self._streams[node] > 0)

    def _report(self, node: NodeId, *, connected: bool) -> None:
        if connected == (node in self._connected):
            return
        if connected:
            self._connected.add(node)
        else:
            self._connected.discard(node)
        if self._receiver is not None:
            self._receiver.connection(node, closed=not connected)
