"""A cluster whose nodes and groups are plain values: group 0 commits at once, and orders do what they say, unless a
test has them fail before or after their effect."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from consensus.core.configuration import members_of, next_replica_of
from consensus.core.interface import Configuration, Entry, EntryKind, Home, ReplicaId
from paramserver.catalogue import commands
from paramserver.catalogue.bootstrap import layout
from paramserver.catalogue.commands import Command, Envelope, OpenSession, RegisterNode
from paramserver.catalogue.machine import CatalogueMachine
from paramserver.catalogue.moving import Mover
from paramserver.catalogue.pictures import GroupPicture, Stranger, Survey
from paramserver.catalogue.placement import FIRST_REPLICA, Placement, Reshape
from paramserver.catalogue.sessions import Answer
from paramserver.catalogue.state import Node, NodeState
from paramserver.wire.checksum import crc32c
from paramserver.wire.errors import Reason, Refusal

SECRET = b"s" * 32


def uuid(node: int, life: int = 0) -> bytes:
    return bytes([life, node]) * 8


@dataclass
class FakeGroup:
    """What the group's own log says."""

    configuration: Configuration
    index: int = 1
    leader: ReplicaId = 0
    last_index: int = 100
    match: dict[ReplicaId, int] = field(default_factory=dict)
    log: list[Configuration] = field(default_factory=list)


class FakeCluster:
    """`folders`: node -> uuid of the folder that runs there now; `replicas`: (node, uuid) -> {(group, replica)}."""

    def __init__(self, nodes: int = 3) -> None:
        members = {node: f"h:{node}" for node in range(1, nodes + 1)}
        self.folders = {node: uuid(node) for node in members}
        self.addresses = dict(members)
        self.groups = {
            group: FakeGroup(configuration, leader=configuration.voters[0])
            for group, configuration in layout(members).items()
        }
        self.replicas: dict[bytes, set[tuple[int, int]]] = {uuid(node): set() for node in members}
        for group, one in self.groups.items():
            for voter in one.configuration.voters:
                self.replicas[uuid(voter)].add((group, voter))
                one.match[voter] = one.last_index
        self.tombstones: set[tuple[bytes, int, int]] = set()
        self.down: set[int] = set()
        self.told: dict[bytes, int] = {}
        self.calls = 0
        self.before: Callable[[str], None] = lambda what: None
        """Called before and after each effect; may raise."""
        self.slow: set[int] = set()
        """Nodes whose new replicas don't catch up."""
        self.machine = CatalogueMachine(tuple(group for group in self.groups if group))
        self._index = 0
        for node, address in members.items():
            self.apply(Envelope(RegisterNode(Node(node, address, uuid(node)))))
        self.session = self.apply(Envelope(OpenSession(b"c" * 16, SECRET, "admin"))).value
        self.sequence = 0

    # --- group 0

    def apply(self, envelope: Envelope) -> Answer:
        self._index += 1
        payload = commands.encode(envelope)
        return self.machine.apply(Entry(1, self._index, EntryKind.NORMAL, payload, crc32c(payload)))

    def reshape(self, wish: Reshape) -> Answer:
        self.sequence += 1
        return self.apply(Envelope(wish, self.session, self.sequence, SECRET))

    async def commit(self, command: Command) -> Answer:
        self._event(f"commit {type(command).__name__}")
        answer = self.apply(Envelope(command))
        self._event(f"committed {type(command).__name__}")
        if not answer.ok:
            raise Refusal(Reason(answer.reason), answer.message)
        return answer

    @property
    def placement(self) -> Placement:
        return self.machine.placement

    # --- Hands

    async def survey(self, nodes: Iterable[Node], groups: Iterable[int]) -> Survey:
        known = list(nodes)
        up = frozenset(node.node for node in known if node.node not in self.down and self._stands(node))
        seen = {group: self.picture(group) for group in groups if self._voters_up(group)}
        return Survey(up, seen, tuple(group for group in groups if group not in seen))

    async def look(self, group: int) -> GroupPicture:
        await asyncio.sleep(0)
        self._event(f"look {group}")
        one = self.groups[group]
        alive = self._voters_up(group)
        if len(alive) * 2 <= len(one.configuration.voters):
            raise Refusal(Reason.NOT_READY, f"group {group} has no leader")
        if one.leader not in alive:
            one.leader = alive[0]
        return self.picture(group)

    def picture(self, group: int) -> GroupPicture:
        one = self.groups[group]
        return GroupPicture(
            group=group,
            configuration=one.configuration,
            index=one.index,
            leader=one.leader,
            term=1,
            serving=True,
            commit_index=one.index,
            last_index=one.last_index,
            match=dict(one.match),
        )

    async def identify(self, address: str) -> Stranger:
        for node, at in self.addresses.items():
            if at == address and node not in self.down:
                return Stranger(node, self.folders[node], b"c", address, True)
        raise Refusal(Reason.NOT_READY, f"nobody answers at {address}")

    async def tell(self, node: Node, placement: Placement) -> None:
        await self._reach(node.node, node.node_uuid, "tell")
        self.told[node.node_uuid] = placement.directory

    async def create(self, home: Home, group: int, replica: int, configuration: Configuration) -> None:
        await self._reach(home.node, home.uuid, "create")
        if (home.uuid, group, replica) in self.tombstones:
            raise Refusal(Reason.CONFLICT, "that replica was deleted here")
        assert replica not in members_of(configuration)
        self.replicas.setdefault(home.uuid, set()).add((group, replica))
        self._event("created")

    async def delete(self, home: Home, group: int, replica: int) -> None:
        await self._reach(home.node, home.uuid, "delete")
        one = self.groups[group]
        assert replica not in members_of(one.configuration), "a member is never deleted"
        self.replicas[home.uuid].discard((group, replica))
        self.tombstones.add((home.uuid, group, replica))
        self._event("deleted")

    async def change(
        self,
        picture: GroupPicture,
        *,
        voters: tuple[int, ...],
        learners: tuple[int, ...],
        new: Home | None = None,
    ) -> None:
        await asyncio.sleep(0)
        self._event("change")
        one = self.groups[picture.group]
        if one.index != picture.index:
            raise Refusal(Reason.STALE_EPOCH, "another configuration is in force")
        known = members_of(one.configuration)
        added = {*voters, *learners} - known
        if any(member < next_replica_of(one.configuration) for member in added):
            raise Refusal(Reason.CONFLICT, f"{added} were members before")
        for voter in set(voters) - set(one.configuration.voters):
            if one.match.get(voter, 0) < one.last_index:
                raise Refusal(Reason.NOT_READY, f"replica {voter} has not caught up")
        homes = tuple(home for home in one.configuration.homes if home.replica in {*voters, *learners})
        if new is not None and added:
            homes = (*homes, new)
            if new.node not in self.slow:
                one.match[new.replica] = one.last_index
        following = max(next_replica_of(one.configuration), *(member + 1 for member in (*voters, *learners)))
        one.configuration = Configuration(voters, learners, (), homes, following)
        one.index += 2
        one.log.append(one.configuration)
        if one.leader not in voters:
            one.leader = voters[0]
        self._event("changed")

    async def transfer(self, picture: GroupPicture, to: ReplicaId) -> None:
        await asyncio.sleep(0)
        self._event("transfer")
        self.groups[picture.group].leader = to

    # --- within

    def _event(self, what: str) -> None:
        self.calls += 1
        self.before(what)

    async def _reach(self, node: int, folder: bytes, what: str) -> None:
        await asyncio.sleep(0)
        self._event(what)
        if node in self.down or self.folders.get(node) != folder:
            raise Refusal(Reason.NOT_READY, f"node {node} does not answer")

    def _stands(self, node: Node) -> bool:
        return node.state is not NodeState.REMOVED and self.folders.get(node.node) == node.node_uuid

    def _voters_up(self, group: int) -> list[int]:
        one = self.groups[group]
        at = {home.replica: (home.node, home.uuid) for home in one.configuration.homes}
        alive = []
        for voter in one.configuration.voters:
            node, folder = at[voter] if voter in at else (voter, uuid(voter))
            if node not in self.down and self.folders.get(node) == folder:
                alive.append(voter)
        return alive

    # --- what tests do

    def start(self, node: int, life: int = 0) -> Node:
        """A server with an empty folder, which waits to be admitted."""
        self.folders[node] = uuid(node, life)
        self.addresses[node] = f"h:{node}"
        self.down.discard(node)
        self.replicas.setdefault(uuid(node, life), set())
        return Node(node, f"h:{node}", uuid(node, life))

    def mover(self) -> Mover:
        return Mover(lambda: self.placement, lambda: self.machine.groups, self, self.commit)

    def nodes_of(self, group: int) -> set[int]:
        return set(self.picture(group).voter_nodes())

    def check(self) -> None:
        """Every group's members are where its log says, and nowhere else but at folders that are gone."""
        for group, one in self.groups.items():
            picture = self.picture(group)
            assert len(set(picture.nodes)) == len(picture.members), "two replicas of a group on one node"
            for member in members_of(one.configuration):
                folder = picture.uuid_of(member) or uuid(picture.node_of(member))
                assert (group, member) in self.replicas[folder]
            if member_ids := [member for member in members_of(one.configuration) if member >= FIRST_REPLICA]:
                assert all(member < next_replica_of(one.configuration) for member in member_ids)

    def quiet(self) -> bool:
        return not self.placement.moves and not self.placement.leftovers
