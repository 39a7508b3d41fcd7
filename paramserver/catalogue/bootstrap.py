"""What every node derives alike from the member list: the cluster's id, and which group lives where.

Invariants: a pure function of (members, token, groups), so that nodes that were started with the same list agree
without talking, and others have another cluster's id (RULES I2); leaders are preferred evenly over the nodes, and so
are those who follow when one of them dies. Must not know: configuration files, sockets.
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
GROUPS_MAX = 256
"""Data groups of a cluster: each has heartbeats, timers and a share of every flush of its own."""


def cluster_id(members: Mapping[NodeId, str], token: str, groups: int = 0) -> bytes:
    """16 bytes, equal on nodes that were given the same member list, token and number of data groups, and on no
    others. `groups` 0: as many as members."""
    digest = hashlib.sha256(b"paramserver/1\0")
    for node in sorted(members):
        digest.update(f"{node}={members[node]}\n".encode())
    digest.update(b"\0" + token.encode())
    if groups not in (0, len(members)):
        digest.update(f"\0groups={groups}".encode())
    return digest.digest()[:CLUSTER_ID_BYTES]


def layout(members: Mapping[NodeId, str], groups: int = 0) -> dict[GroupId, Configuration]:
    """Group 0 on the first nodes, and `groups` data groups (0: one a node), each on three neighbours; the preferred
    leader first (C6).

    Data group g prefers the g-th node, round and round. Each round turns the order of its followers, so that what a
    dead node led goes to all of its neighbours and not to one. Replicas of the bootstrap carry their node's id; ids of
    replicas that are added later must never be one of these (I1).
    """
    nodes = sorted(members)
    found = {CATALOGUE_GROUP: Configuration(voters=tuple(nodes[:CATALOGUE_VOTERS_MAX]))}
    for place in range(groups or len(nodes)):
        round_, first = divmod(place, len(nodes))
        others = [nodes[(first + i) % len(nodes)] for i in range(1, min(DATA_REPLICAS, len(nodes)))]
        turn = round_ % len(others) if others else 0
        found[place + 1] = Configuration(voters=(nodes[first], *others[turn:], *others[:turn]))
    return found


def data_groups(members: Mapping[NodeId, str], groups: int = 0) -> tuple[GroupId, ...]:
    return tuple(group for group in layout(members, groups) if group != CATALOGUE_GROUP)
