"""What was just seen of nodes and groups: what plans are made of, and what a driver looks at before each step.

Invariant: a picture is only a picture: who acts on it names the configuration that it saw, and is refused where that is
not in force any more. Must not know: how nodes are asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from consensus.core.configuration import members_of, next_replica_of, node_of
from consensus.core.interface import Configuration, GroupId, Home, NodeId, ReplicaId
from paramserver.catalogue.placement import FIRST_REPLICA, Placement
from paramserver.catalogue.state import Node


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPicture:
    """A group as its leader tells of it; without one (`leader` 0) as the replica does that knows the newest
    configuration. `index`: where the configuration stands; it is committed from `commit_index` on. `serving`: the
    leader's no-op is applied."""

    group: GroupId
    configuration: Configuration
    index: int = 0
    leader: ReplicaId = 0
    term: int = 0
    serving: bool = False
    commit_index: int = 0
    last_index: int = 0
    match: Mapping[ReplicaId, int] = field(default_factory=dict)

    @property
    def settled(self) -> bool:
        """Not joint, and committed."""
        return not self.configuration.outgoing and self.commit_index >= self.index

    @property
    def members(self) -> frozenset[ReplicaId]:
        return members_of(self.configuration)

    @property
    def next_replica(self) -> ReplicaId:
        return next_replica_of(self.configuration)

    @property
    def leader_node(self) -> NodeId:
        return self.node_of(self.leader)

    def node_of(self, replica: ReplicaId) -> NodeId:
        """Where a member lives; 0 when nobody knows."""
        return node_of(self.configuration, replica) or (replica if replica < FIRST_REPLICA else 0)

    def uuid_of(self, replica: ReplicaId) -> bytes:
        """Of its folder; empty for members of the bootstrap."""
        return next((home.uuid for home in self.configuration.homes if home.replica == replica), b"")

    def at(self, node: NodeId) -> tuple[ReplicaId, ...]:
        """Members that live on that node."""
        return tuple(sorted(member for member in self.members if self.node_of(member) == node))

    @property
    def nodes(self) -> tuple[NodeId, ...]:
        """Of all members, each once."""
        return tuple(sorted({self.node_of(member) for member in self.members}))

    def voter_nodes(self) -> tuple[NodeId, ...]:
        return tuple(self.node_of(voter) for voter in self.configuration.voters)


@dataclass(frozen=True, slots=True)
class Survey:
    """`up`: nodes that answered. `silent`: groups of which no replica answered. `directories`: the version of the
    directory that each node knows."""

    up: frozenset[NodeId]
    groups: Mapping[GroupId, GroupPicture]
    silent: tuple[GroupId, ...] = ()
    directories: Mapping[NodeId, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stranger:
    """Who answers at an address. `waiting`: it waits to be admitted."""

    node: NodeId
    node_uuid: bytes
    cluster: bytes
    address: str
    waiting: bool


class Hands(Protocol):
    """How group 0's leader reaches nodes, within one of its terms. Every method but `survey` raises `Refusal` when it
    was not done (or may not have been: all of them can be repeated)."""

    async def survey(self, nodes: Iterable[Node], groups: Iterable[GroupId]) -> Survey: ...

    async def look(self, group: GroupId) -> GroupPicture:
        """As its leader tells it."""

    async def identify(self, address: str) -> Stranger: ...

    async def tell(self, node: Node, placement: Placement) -> None:
        """The directory; returns when the node holds it durably."""

    async def create(self, home: Home, group: GroupId, replica: ReplicaId, configuration: Configuration) -> None:
        """Have the replica made; returns when it is durable. One that is there already is fine."""

    async def delete(self, home: Home, group: GroupId, replica: ReplicaId) -> None:
        """Have the replica deleted for ever; one that is not there (any more) is fine."""

    async def change(
        self,
        picture: GroupPicture,
        *,
        voters: tuple[ReplicaId, ...],
        learners: tuple[ReplicaId, ...],
        new: Home | None = None,
    ) -> None:
        """At the leader of the picture, if the configuration of the picture is in force there; returns when the final
        configuration is committed. NOT_READY: refused for now, such as for a learner that has not caught up."""

    async def transfer(self, picture: GroupPicture, to: ReplicaId) -> None:
        """Returns when `to` leads."""
