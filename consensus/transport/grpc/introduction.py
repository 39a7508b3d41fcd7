"""First contact of two nodes: who are you, and do you hold my folder's uuid? (RULES I2)

Owns the judgement of an introduction and the wait of a new folder. Invariants: a peer's uuid is confirmed only after it
is held durably; another uuid under a known node is refused for ever, with the repair; so is a life of a folder that is
not later than the latest one met; a node of a new folder is done waiting only when every other member has confirmed.
Must not know: streams, groups.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Protocol

from consensus.core.interface import NodeId
from consensus.transport.messages import NUMBER_MAX
from consensus.transport.sockets.wire import Origin
from consensus.v1 import consensus_pb2 as pb

PROTOCOL = 2
UUID_BYTES = 16
LIFE_BYTES_MAX = 16
PORT_MAX = 65535
DURABILITY_MAX = 32
"""Characters of a peer's that are kept."""
KERNEL_ANSWERS_MAX = 4096
"""Bytes of a known-answer test's result."""


_log = logging.getLogger(__name__)


class Folder(Protocol):
    """`consensus.storage.identity.NodeIdentity` by shape."""

    @property
    def cluster(self) -> bytes: ...

    @property
    def node(self) -> NodeId: ...

    @property
    def uuid(self) -> bytes: ...

    @property
    def peers(self) -> dict[NodeId, bytes]: ...

    @property
    def lives(self) -> dict[NodeId, tuple[int, bytes]]: ...

    @property
    def activated(self) -> bool: ...

    def remember_peer(self, node: NodeId, uuid: bytes) -> None:
        """Durably; touches the disk."""

    def replace_peer(self, node: NodeId, uuid: bytes) -> None:
        """Durably, whatever was known before; touches the disk."""

    def forget_peer(self, node: NodeId) -> None:
        """Durably; touches the disk."""

    def meet(self, node: NodeId, uuid: bytes, incarnation: int, life: bytes) -> None:
        """Durably; touches the disk."""

    def activate(self) -> None:
        """Durably; touches the disk."""


class Introductions:
    """Both ends of the handshake, on the event loop; the disk is touched on other threads."""

    def __init__(
        self,
        folder: Folder,
        *,
        incarnation: int,
        members: Mapping[NodeId, str],
        kernel_answers: bytes = b"",
        life: bytes = b"",
        durability: str = "",
    ) -> None:
        """`life`: random, of this process. An incarnation counts starts of a folder; if an older copy of the folder is
        put back, it comes a second time. `durability`: what an acknowledgement of this node's means; compared with the
        others'."""
        self._folder = folder
        self._incarnation = incarnation
        self._life = life
        self._lives = folder.lives
        """The latest life of each peer that was met; on disk a little later."""
        self._keeping: set[asyncio.Task[None]] = set()
        self._members = dict(members)
        self._kernel_answers = kernel_answers
        self._durability = durability
        self._saving = asyncio.Lock()
        self.peer_port = 0
        """Where this node takes frames of other nodes; told to each."""
        self.peer_ports: dict[NodeId, int] = {}
        """What each peer told of itself."""
        self.confirmed: set[NodeId] = set()
        """Members that hold this folder's uuid durably."""
        self.refusals: dict[NodeId, str] = {}
        """Why a member refuses this node, or this node that member; cleared when they agree."""
        self.differing: dict[NodeId, str] = {}
        """Peers under another durability than this node's, as they said last."""
        self.other_folder = False
        """A member knows this node's number with another folder than this one."""
        self.outdated = asyncio.Event()
        """A member has met a later life of this node's folder; `refusals` says which."""
        self.changed = asyncio.Event()

    def missing(self) -> list[NodeId]:
        """Members that have not confirmed yet in this life."""
        return sorted(set(self._members) - {self._folder.node} - self.confirmed)

    @property
    def uuid(self) -> bytes:
        """Of this node's folder."""
        return self._folder.uuid

    def known(self, node: NodeId) -> bytes | None:
        return self._folder.peers.get(node)

    def stranger(self, sender: Origin) -> str:
        """Why this sender's frames are not taken (RULES I1, I2), or an empty string."""
        if sender.cluster != self._folder.cluster:
            return f"cluster: {sender.cluster.hex()}, expected {self._folder.cluster.hex()}"
        if sender.node == self._folder.node:
            return f"from_node: {sender.node}, which is this node"
        known = self.known(sender.node)
        if known is None:
            return f"from_node: {sender.node}, which has not introduced itself"
        if known != sender.node_uuid:
            return self.another_folder(sender.node, known=known, shown=sender.node_uuid)
        met = self.met(sender.node)
        if sender.incarnation < met:
            return self.outdated_folder(sender.node, met=met, shown=sender.incarnation)
        return ""

    def another_folder(self, node: NodeId, *, known: bytes, shown: bytes) -> str:
        """Why, and the command that repairs it."""
        address, here = self._members.get(node, "host:port"), self._members.get(self._folder.node, "host:port")
        return (
            f"node {node} comes with data folder {shown.hex()}, but is known with {known.hex()}: it was wiped or "
            "replaced; restore its old folder, or give its place to the new one: "
            f"paramserver node replace {node} {node}={address} --servers {here}"
        )

    def met(self, node: NodeId) -> int:
        """The highest incarnation of that node that was met."""
        return self._lives.get(node, (0, b""))[0]

    def outdated_folder(self, node: NodeId, *, met: int, shown: int) -> str:
        """Why, and the command that repairs it."""
        address, here = self._members.get(node, "host:port"), self._members.get(self._folder.node, "host:port")
        again = "another process with" if shown == met else "only"
        return (
            f"node {node} was met in incarnation {met} and comes back with {again} incarnation {shown}: its "
            "data folder was put back to an older copy, or lost the newest part of its log, and what it acknowledged "
            "since is not in it; restore the folder as it was, or move it away, start the node on an empty one and "
            f"give its place to that: paramserver node replace {node} {node}={address} --servers {here}"
        )

    def _meet(self, node: NodeId, uuid: bytes, incarnation: int, life: bytes) -> str:
        """Note the life of a peer; returns the refusal where a later one is known. Nobody waits for the disk, which may
        be the one that stands still."""
        met = self._lives.get(node)
        if met == (incarnation, life):
            return ""
        if met is not None and incarnation <= met[0]:
            return self.outdated_folder(node, met=met[0], shown=incarnation)
        self._lives[node] = (incarnation, life)
        task = asyncio.create_task(self._keep(node, uuid, incarnation, life), name=f"life of node {node}")
        self._keeping.add(task)
        task.add_done_callback(self._keeping.discard)
        return ""

    async def _keep(self, node: NodeId, uuid: bytes, incarnation: int, life: bytes) -> None:
        async with self._saving:
            try:
                await asyncio.to_thread(self._folder.meet, node, uuid, incarnation, life)
            except Exception as error:
                _log.error("cannot write down that node %d was met in incarnation %d: %s", node, incarnation, error)

    # --- members that come and go ------------------------------------------------------------------------------------

    async def admit(self, node: NodeId, address: str, uuid: bytes) -> None:
        """That node belongs to the cluster, under that folder and no other; durable when it returns."""
        another = self.known(node) != uuid
        async with self._saving:
            await asyncio.to_thread(self._folder.replace_peer, node, uuid)
        if another:
            self._lives.pop(node, None)
        self._members[node] = address
        self.refusals.pop(node, None)

    async def dismiss(self, node: NodeId) -> None:
        self._members.pop(node, None)
        self.confirmed.discard(node)
        self.refusals.pop(node, None)
        self.differing.pop(node, None)
        async with self._saving:
            await asyncio.to_thread(self._folder.forget_peer, node)
        self._lives.pop(node, None)

    # --- asked ------------------------------------------------------------------------------------------------------

    async def judge(self, request: pb.IntroduceRequest) -> pb.IntroduceResponse:
        """Answer a peer, after its uuid is durable here."""
        refusal = self._refusal(request)
        if not refusal:
            refusal = await self._remember(request.node, request.node_uuid)
        other = self.known(request.node) not in (None, request.node_uuid) if refusal else False
        outdated = ""
        if not refusal:
            refusal = outdated = self._meet(request.node, request.node_uuid, request.incarnation, request.life)
        if not refusal:
            self._compare(request.node, request.durability)
        return pb.IntroduceResponse(
            accepted=not refusal,
            refusal=refusal,
            node_uuid=self._folder.uuid,
            incarnation=self._incarnation,
            holds_uuid=not refusal,
            other_folder=other,
            life=self._life,
            outdated=bool(outdated),
            peer_port=self.peer_port,
            durability=self._durability,
        )

    def _refusal(self, request: pb.IntroduceRequest) -> str:
        folder = self._folder
        if request.protocol != PROTOCOL:
            return f"protocol: {request.protocol}, expected {PROTOCOL}; run the same version everywhere"
        if request.cluster != folder.cluster:
            return (
                f"cluster: {request.cluster[:16].hex()}, expected {folder.cluster.hex()}; give every node the same "
                "member list, token and number of groups (--groups)"
            )
        if request.to_node != folder.node:
            return (
                f"to_node: {request.to_node}, but node {folder.node} answers here; check the addresses of the members"
            )
        if request.node == folder.node or request.node not in self._members:
            others = sorted(set(self._members) - {folder.node})
            return (
                f"node: {request.node}, expected another member: {others}; that node was removed or replaced, or never "
                "added: only with an empty folder, started with --join, it can be admitted (paramserver node add)"
            )
        if len(request.node_uuid) != UUID_BYTES or request.incarnation >= NUMBER_MAX:
            return f"node_uuid, incarnation: expected {UUID_BYTES} bytes and less than {NUMBER_MAX}"
        if len(request.life) > LIFE_BYTES_MAX:
            return f"life: {len(request.life)} bytes, expected at most {LIFE_BYTES_MAX}"
        return self._arithmetic(request.node, request.kernel_answers)

    def _arithmetic(self, node: NodeId, answers: bytes) -> str:
        """Nodes that compute differently would not stay equal (RULES S13)."""
        if answers and self._kernel_answers and answers != self._kernel_answers:
            return (
                f"kernel_answers: node {node} computes other bits than node {self._folder.node} ({answers[:16].hex()}, "
                f"expected {self._kernel_answers[:16].hex()}); run the same numpy on the same kind of machine"
            )
        return ""

    def _compare(self, node: NodeId, durability: str) -> None:
        """A difference harms neither, and is how a cluster is changed node by node; but it must not go unseen."""
        if durability in ("", self._durability) or not self._durability:
            self.differing.pop(node, None)
            return
        shown = durability[:DURABILITY_MAX]
        if self.differing.get(node) != shown:
            self.differing[node] = shown
            _log.warning("%s", self.other_durability(node))

    def other_durability(self, node: NodeId) -> str:
        return (
            f"node {node} runs with --durability {self.differing[node]}, node {self._folder.node} with "
            f"{self._durability}: an update is as safe as the weakest majority that acknowledged it; give all servers "
            "the same"
        )

    async def _remember(self, node: NodeId, uuid: bytes) -> str:
        """Hold a peer's uuid; returns the refusal where another one is held."""
        async with self._saving:
            known = self._folder.peers.get(node)
            if known is None:
                if uuid == self._folder.uuid:
                    return f"node_uuid: node {node} runs on a copy of this node's folder"
                await asyncio.to_thread(self._folder.remember_peer, node, uuid)
            elif known != uuid:
                return self.another_folder(node, known=known, shown=uuid)
        return ""

    # --- asking -----------------------------------------------------------------------------------------------------

    def request(self, to_node: NodeId) -> pb.IntroduceRequest:
        folder = self._folder
        return pb.IntroduceRequest(
            cluster=folder.cluster,
            node=folder.node,
            node_uuid=folder.uuid,
            incarnation=self._incarnation,
            to_node=to_node,
            protocol=PROTOCOL,
            activated=folder.activated,
            kernel_answers=self._kernel_answers[:KERNEL_ANSWERS_MAX],
            life=self._life,
            durability=self._durability,
        )

    async def answered(self, node: NodeId, response: pb.IntroduceResponse) -> str:
        """A peer's answer; returns why the two can't talk, or an empty string."""
        self.other_folder = self.other_folder or response.other_folder
        if not response.accepted or not response.holds_uuid:
            refusal = f"node {node} refuses this node: {response.refusal[:500] or 'no reason given'}"
        elif len(response.node_uuid) != UUID_BYTES:
            refusal = f"node {node} answers with a uuid of {len(response.node_uuid)} bytes, expected {UUID_BYTES}"
        elif len(response.life) > LIFE_BYTES_MAX or response.incarnation >= NUMBER_MAX:
            refusal = f"node {node} answers with a life that can't be"
        elif response.accepted and not 1 <= response.peer_port <= PORT_MAX:
            refusal = f"node {node} answers with peer_port {response.peer_port}, expected 1 to {PORT_MAX}"
        else:
            refusal = await self._remember(node, response.node_uuid)
            refusal = refusal or self._meet(node, response.node_uuid, response.incarnation, response.life)
        if refusal:
            self.refusals[node] = refusal
        else:
            self.refusals.pop(node, None)
            self.peer_ports[node] = response.peer_port
            self._compare(node, response.durability)
            self.confirmed.add(node)
        if response.outdated:
            self.outdated.set()
        self.changed.set()
        return refusal

    async def activate(self) -> None:
        """Every member has confirmed."""
        if not self._folder.activated:
            async with self._saving:
                await asyncio.to_thread(self._folder.activate)

    @property
    def activated(self) -> bool:
        return self._folder.activated
