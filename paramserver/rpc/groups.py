"""The groups this node hosts, and where the leaders of all groups are, as far as it knows.

Owns the answers "not here, go there". Invariant: a hint is only a hint: who follows it asks again there. Must not know:
what the groups hold.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from consensus.core.interface import Configuration, GroupId, NodeId, Payload, ReplicaId
from consensus.runtime.interface import Outcome
from paramserver.wire.checksum import crc32c
from paramserver.wire.errors import Reason, Refusal


class Handle(Protocol):
    """`consensus.runtime`'s GroupHandle, as far as it is used here."""

    def propose(self, payload: Payload, crc: int, done: Callable[[Outcome], None]) -> None: ...

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
    """`hosted` is filled by the composition root before anything is served."""

    def __init__(
        self, *, node: NodeId, addresses: Mapping[NodeId, str], layout: Mapping[GroupId, Configuration]
    ) -> None:
        self.node = node
        self.addresses = addresses
        self.layout = layout
        self.hosted: dict[GroupId, Hosted] = {}
        self._announced: dict[GroupId, tuple[int, NodeId]] = {}

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
        voters = [int(replica) for replica in self.layout[group].voters]
        return [leader, *(node for node in voters if node != leader)] if leader else voters


async def propose(handle: Handle, payload: bytes) -> Outcome:
    """The outcome, on the event loop."""
    future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def done(outcome: Outcome) -> None:
        if not future.done():
            future.set_result(outcome)

    handle.propose(payload, crc32c(payload), done)
    return await future


Propose = Callable[[bytes], Awaitable[Outcome]]
