"""The groups this node hosts, who their members are, and where their leaders are, as far as it knows.

Owns the answers "not here, go there". Invariants: a hint is only a hint: who follows it asks again there; members of a
group that is hosted here are what its own log says (RULES I3), of others what group 0 last heard, and before it told
anything those of the bootstrap. Must not know: what the groups hold.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from consensus.core.configuration import members_of, node_of
from consensus.core.interface import Configuration, GroupId, MembershipChange, NodeId, Payload, ReplicaId
from consensus.runtime.interface import Outcome, ReadOutcome, TransferOutcome
from paramserver.catalogue.placement import FIRST_REPLICA, Members
from paramserver.catalogue.state import Node, NodeState
from paramserver.wire.checksum import crc32c
from paramserver.wire.errors import Reason, Refusal


class Handle(Protocol):
    """`consensus.runtime`'s GroupHandle, as far as it is used here."""

    def propose(self, payload: Payload, crc: int, done: Callable[[Outcome], None]) -> None: ...

    def propose_membership(self, change: MembershipChange, done: Callable[[Outcome], None]) -> None: ...

    def read_index(self, done: Callable[[ReadOutcome], None]) -> None: ...

    def transfer(self, replica: ReplicaId, done: Callable[[TransferOutcome], None]) -> None: ...

    def status(self) -> Any: ...

    def leader(self) -> tuple[ReplicaId, NodeId, int]: ...


@dataclass(frozen=True, slots=True)
class Hosted:
    """A replica on this node. `machine`: the group's state machine."""

    group: GroupId
    replica: ReplicaId
    handle: Handle
    machine: Any


class Groups:
    """`hosted` is filled by the composition root, and changed by it as replicas come and go. `addresses` and `layout`
    are those of the bootstrap."""

    def __init__(
        self, *, node: NodeId, addresses: Mapping[NodeId, str], layout: Mapping[GroupId, Configuration]
    ) -> None:
        self.node = node
        self.addresses: dict[NodeId, str] = dict(addresses)
        """Where nodes are reached; changed in place."""
        self.layout = layout
        self.hosted: dict[GroupId, Hosted] = {}
        self.directory = 0
        """Version of what group 0 told of nodes and members; 0: nothing yet."""
        self.nodes: dict[NodeId, Node] = {}
        """As group 0 told."""
        self._members: Mapping[GroupId, Members] = {}
        self._announced: dict[GroupId, tuple[int, NodeId]] = {}

    def told(self, version: int, nodes: Iterable[Node], members: Mapping[GroupId, Members]) -> bool:
        """Group 0's directory; False where a newer one is known."""
        if version < self.directory:
            return False
        self.directory = version
        self.nodes = {node.node: node for node in nodes}
        self._members = dict(members)
        for node in self.nodes.values():
            if node.state is NodeState.REMOVED:
                self.addresses.pop(node.node, None)
            else:
                self.addresses[node.node] = node.address
        return True

    def configuration(self, group: GroupId) -> Configuration | None:
        """The newest that is known here; None for a group that there is not."""
        known = self._members.get(group)
        index, newest = (known.index, known.configuration) if known is not None else (0, self.layout.get(group))
        hosted = self.hosted.get(group)
        if hosted is not None:
            status = hosted.handle.status()
            core = status.core
            if core is not None and core.configuration is not None and core.configuration_index >= index:
                return core.configuration
        return newest

    def places(self, group: GroupId) -> list[tuple[ReplicaId, NodeId]]:
        """(member, node), voters first, in their order."""
        configuration = self.configuration(group)
        if configuration is None:
            return []
        members = members_of(configuration)
        ordered = [*configuration.voters, *sorted(members - set(configuration.voters))]
        return [(replica, home_of(configuration, replica)) for replica in ordered]

    def announced(self, group: GroupId, term: int, node: NodeId) -> None:
        """A leader of a group that may not be hosted here was heard of."""
        if term >= self._announced.get(group, (0, 0))[0]:
            self._announced[group] = (term, node)

    def leader(self, group: GroupId) -> tuple[NodeId, int]:
        """(node, term) as known here; node 0: unknown."""
        hosted = self.hosted.get(group)
        if hosted is not None:
            _, node, term = hosted.handle.leader()
            return node, term
        term, node = self._announced.get(group, (0, 0))
        return node, term

    def node_at(self, address: str) -> NodeId:
        """0: nobody is known there."""
        return next((node for node, known in self.addresses.items() if known == address), 0)

    def elsewhere(self, group: GroupId) -> Refusal:
        """NOT_LEADER, with the way there where it is known. Names this node when it leads, but can't judge yet (S2)."""
        node, term = self.leader(group)
        if node == self.node:
            return Refusal(
                Reason.NOT_READY,
                f"node {self.node} has just become the leader of group {group} and applies what went before",
                group=group,
                term=term,
                retry_after_ms=5,
            )
        return Refusal(
            Reason.NOT_LEADER,
            f"node {self.node} does not lead group {group}; "
            + (f"node {node} does" if node else "it has no leader now"),
            leader_address=self.addresses.get(node, ""),
            group=group,
            term=term,
            retry_after_ms=0 if node else 50,
            hint="" if node else "a majority of the group's nodes must run and reach each other",
        )

    def candidates(self, group: GroupId) -> list[NodeId]:
        """Nodes to ask for the group's leader, the likeliest first."""
        leader, _ = self.leader(group)
        nodes = list(dict.fromkeys(node for _, node in self.places(group) if node))
        return [leader, *(node for node in nodes if node != leader)] if leader else nodes


def home_of(configuration: Configuration, replica: ReplicaId) -> NodeId:
    """Where a member lives; bootstrap replicas carry their node's number. 0: unknown."""
    return node_of(configuration, replica) or (replica if replica < FIRST_REPLICA else 0)


async def propose(handle: Handle, payload: bytes) -> Outcome:
    """The outcome, on the event loop."""
    future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def done(outcome: Outcome) -> None:
        if not future.done():
            future.set_result(outcome)

    handle.propose(payload, crc32c(payload), done)
    return await future


Propose = Callable[[bytes], Awaitable[Outcome]]
