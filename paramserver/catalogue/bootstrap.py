"""What every node derives alike from the member list: the cluster's id, and which group lives where.

Invariant: a pure function of (members, token), so that nodes that were started with the same list agree without talking
(RULES I2). Must not know: configuration files, sockets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from consensus.core.interface import Configuration, GroupId, NodeId

CATALOGUE_GROUP: GroupId = 0
CATALOGUE_VOTERS_MAX = 5
"""More voters make every decision slower and no cluster of ours safer."""
DATA_REPLICAS = 3
NODES_MAX = 64
"""Nodes in one member list."""
CLUSTER_ID_BYTES = 16


def cluster_id(members: Mapping[NodeId, str], token: str) -> bytes:
    """16 bytes, equal on nodes that were given the same member list and token, and on no others."""
    digest = hashlib.sha256(b"paramserver/1\0")
    for node in sorted(members):
        digest.update(f"{node}={members[node]}\n".encode())
    digest.update(b"\0" + token.encode())
    return digest.digest()[:CLUSTER_ID_BYTES]


def layout(members: Mapping[NodeId, str]) -> dict[GroupId, Configuration]:
    """Group 0 on the first nodes, and one data group a node on three neighbours; the preferred leader first (C6).

    Replicas of the bootstrap carry their node's id; ids of replicas that are added later must never be one of these
    (I1).
    """
    nodes = sorted(members)
    groups = {CATALOGUE_GROUP: Configuration(voters=tuple(nodes[:CATALOGUE_VOTERS_MAX]))}
    for place in range(len(nodes)):
        replicas = min(DATA_REPLICAS, len(nodes))
        groups[place + 1] = Configuration(voters=tuple(nodes[(place + i) % len(nodes)] for i in range(replicas)))
    return groups


def data_groups(members: Mapping[NodeId, str]) -> tuple[GroupId, ...]:
    return tuple(group for group in layout(members) if group != CATALOGUE_GROUP)
