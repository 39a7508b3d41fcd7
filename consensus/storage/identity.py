"""Who the owner of a data folder is, and what it knows of its peers (RULES I2).

Owns the file `identity`: one line of JSON, one line with its CRC32C. Invariants: every change is durable before the
call returns (temp file, fsync, rename, fsync of the folder); a folder never changes its owner, and a file that
can't be read is never replaced by a new identity. Must not know: how peers are asked.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from consensus.core.interface import NodeId
from consensus.storage.checksum import crc32c
from consensus.storage.errors import IdentityMismatch, StorageFailed, UnknownFormat
from consensus.storage.interface import FileSystem, Identity
from consensus.storage.smallfiles import read_small, replace_small

FORMAT_VERSION = 1
UUID_BYTES = 16
FILE_BYTES_MAX = 1 << 20
_FILE = "identity"
RESTORE = "restore it, or start this node on an empty folder and give its place to that (paramserver node replace)"


class NodeIdentity:
    """The folder's identity in memory; `remember_peer` and `activate` write through."""

    def __init__(
        self,
        filesystem: FileSystem,
        directory: str,
        *,
        cluster: bytes,
        node: NodeId,
        uuid: bytes,
        peers: dict[NodeId, bytes],
        activated: bool,
        joined: bool = False,
        lives: dict[NodeId, tuple[int, bytes]] | None = None,
    ) -> None:
        self._filesystem = filesystem
        self._directory = directory
        self.cluster = cluster
        self.node = node
        self.uuid = uuid
        self._peers = dict(peers)
        self._activated = activated
        self._joined = joined
        self._lives = dict(lives or {})

    @property
    def peers(self) -> dict[NodeId, bytes]:
        """Uuids of the other nodes' folders that this one holds durably."""
        return dict(self._peers)

    @property
    def lives(self) -> dict[NodeId, tuple[int, bytes]]:
        """The latest life of each peer that this node has met: incarnation, and what tells two lives of one incarnation
        apart."""
        return dict(self._lives)

    @property
    def activated(self) -> bool:
        """Every member has confirmed once that it holds this folder's uuid."""
        return self._activated

    @property
    def joined(self) -> bool:
        """The folder came after the bootstrap: it holds no replica that the member list names, whatever its node's
        number, only those that group 0 ordered (RULES I1)."""
        return self._joined

    def identity(self) -> Identity:
        """What `Wal.open` takes."""
        return Identity(
            cluster=self.cluster, node=self.node, node_uuid=self.uuid, peers=self.peers, activated=self._activated
        )

    def remember_peer(self, node: NodeId, uuid: bytes) -> None:
        """Hold a peer's uuid durably. Raises `IdentityMismatch` when another one is known for that node."""
        known = self._peers.get(node)
        if known == uuid:
            return
        if known is not None or node == self.node:
            raise IdentityMismatch(
                f"node {node} comes with data folder {uuid.hex()}, but is known with {(known or self.uuid).hex()}: "
                "it was wiped or replaced"
            )
        if len(uuid) != UUID_BYTES:
            raise IdentityMismatch(f"uuid of node {node} is {len(uuid)} bytes long, not {UUID_BYTES}")
        self._peers[node] = uuid
        try:
            self._save()
        except StorageFailed:
            del self._peers[node]  # It would count as held when it is told again.
            raise

    def replace_peer(self, node: NodeId, uuid: bytes) -> None:
        """Hold that uuid for the node from now on, whatever was known: whoever decides on members said so."""
        if node == self.node or len(uuid) != UUID_BYTES:
            raise IdentityMismatch(f"data folder {uuid.hex()} is none for node {node} as a peer of node {self.node}")
        if self._peers.get(node) != uuid:
            self._peers[node] = uuid
            self._lives.pop(node, None)
            self._save()

    def forget_peer(self, node: NodeId) -> None:
        """It takes part no more."""
        known, _ = self._peers.pop(node, None), self._lives.pop(node, None)
        if known is not None:
            self._save()

    def meet(self, node: NodeId, uuid: bytes, incarnation: int, life: bytes) -> None:
        """Hold the latest life of a peer's folder durably: an older one is a folder that was put back."""
        if self._peers.get(node) == uuid and self._lives.get(node, (0, b""))[0] < incarnation:
            self._lives[node] = (incarnation, life)
            self._save()

    def activate(self) -> None:
        if not self._activated:
            self._activated = True
            self._save()

    def join(self) -> None:
        """Durably, and before anybody can admit this folder. Raises `IdentityMismatch` for one that took part in the
        bootstrap."""
        if self._activated and not self._joined:
            raise IdentityMismatch(
                f"data folder {self._directory!r} has taken part since the bootstrap; start it without --join"
            )
        if not self._joined:
            self._joined = True
            self._save()

    def _save(self) -> None:
        content = {
            "format": FORMAT_VERSION,
            "cluster": self.cluster.hex(),
            "node": self.node,
            "uuid": self.uuid.hex(),
            "peers": {str(node): uuid.hex() for node, uuid in sorted(self._peers.items())},
            "activated": self._activated,
            "joined": self._joined,
            "lives": {str(node): [number, life.hex()] for node, (number, life) in sorted(self._lives.items())},
        }
        line = json.dumps(content, sort_keys=True).encode() + b"\n"
        try:
            replace_small(self._filesystem, self._directory, _FILE, [line, f"{crc32c(line):08x}\n".encode()])
        except OSError as error:
            raise StorageFailed(f"writing {self._directory}/{_FILE}: {error}") from error


def load_or_create(
    filesystem: FileSystem,
    directory: str,
    cluster: bytes,
    node: NodeId,
    *,
    random_bytes: Callable[[int], bytes] = os.urandom,
) -> NodeIdentity:
    """The identity of the folder, made (durably) when the folder is new. Raises `IdentityMismatch` when it belongs to
    another cluster or node, or can't be read, or is missing in a folder that holds a log; `UnknownFormat`;
    `StorageFailed`."""
    path = f"{directory}/{_FILE}"
    try:
        filesystem.mkdir(directory)
        if not filesystem.exists(path):
            if filesystem.exists(f"{directory}/wal") and filesystem.listdir(f"{directory}/wal"):
                raise IdentityMismatch(f"{path} is missing, but there is a log beside it: {RESTORE}")
            uuid = random_bytes(UUID_BYTES)
            made = NodeIdentity(filesystem, directory, cluster=cluster, node=node, uuid=uuid, peers={}, activated=False)
            made._save()
            return made
        raw = read_small(filesystem, path, FILE_BYTES_MAX)
    except OSError as error:
        raise StorageFailed(f"reading {path}: {error}") from error
    return _loaded(filesystem, directory, cluster, node, raw)


def read_identity(filesystem: FileSystem, directory: str) -> dict[str, Any]:
    """What the folder's identity file says. Raises `IdentityMismatch` when it is damaged, `UnknownFormat`,
    `StorageFailed`, also when there is none."""
    path = f"{directory}/{_FILE}"
    try:
        raw = read_small(filesystem, path, FILE_BYTES_MAX)
    except OSError as error:
        raise StorageFailed(f"reading {path}: {error.strerror or error}") from error
    return _parse(path, raw)


def _loaded(filesystem: FileSystem, directory: str, cluster: bytes, node: NodeId, raw: bytes) -> NodeIdentity:
    path = f"{directory}/{_FILE}"
    content = _parse(path, raw)
    if (content["cluster"], content["node"]) != (cluster.hex(), node):
        raise IdentityMismatch(
            f"data folder {directory!r} belongs to node {content['node']} of cluster {content['cluster']}, not to node "
            f"{node} of cluster {cluster.hex()}; start this node on its own folder, with the same members, token and "
            "number of groups as before"
        )
    return NodeIdentity(
        filesystem,
        directory,
        cluster=cluster,
        node=node,
        uuid=bytes.fromhex(content["uuid"]),
        peers={int(peer): bytes.fromhex(uuid) for peer, uuid in content["peers"].items()},
        activated=bool(content["activated"]),
        joined=bool(content.get("joined", False)),
        lives={
            int(peer): (int(number), bytes.fromhex(life)) for peer, (number, life) in content.get("lives", {}).items()
        },
    )


def _parse(path: str, raw: bytes) -> dict[str, Any]:
    line, _, crc = raw.partition(b"\n")
    checksum = crc32c(line + b"\n")
    if crc != f"{checksum:08x}\n".encode():
        raise IdentityMismatch(f"{path} is damaged: {RESTORE}; a new one would let this folder vote twice")
    content: dict[str, Any] = json.loads(line)
    if content.get("format") != FORMAT_VERSION:
        raise UnknownFormat(f"{path} has format {content.get('format')}; this build knows {FORMAT_VERSION}")
    return content
