"""Which nodes and groups there are, and one light stream to every node that says who leads what (RULES C7).

Owns discovery and the watch tasks. Invariants: every announcement reaches the routes as soon as it arrives; a node
whose stream broke is asked again, jittered, for as long as it belongs to the cluster and the client lives; what a node
says of nodes and members is taken unless something newer is known; a server of another cluster is never listened to.
Must not know: models.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from paramserver.v1 import paramserver_pb2 as pb
from paramserver.wire.errors import Reason, Refusal, shown
from paramserver.wire.zones import zone_problems
from worker.network import Method, Network
from worker.retry import Backoff, BackoffOptions
from worker.routing import Routes

DESCRIBE_TIMEOUT_S = 1.0
"""One attempt to ask one server who the cluster is."""
LEARN_ATTEMPTS = 5
WATCH_BACKOFF = BackoffOptions(first_ms=10, most_ms=250)


@dataclass(frozen=True, slots=True)
class Node:
    node: int
    address: str


@dataclass(slots=True)
class Cluster:
    """What a server said last. `groups`: group -> nodes that hold a replica. `directory`: the version of that. `zones`:
    address -> the label that the server there said it has."""

    identity: bytes
    nodes: dict[int, Node]
    groups: dict[int, tuple[int, ...]]
    directory: int = 0
    zones: dict[str, str] = field(default_factory=dict)

    def learn(self, description: pb.ClusterDescription) -> bool:
        """Take what a server says now; False where something newer is known."""
        if description.directory < self.directory or bytes(description.cluster) != self.identity:
            return False
        nodes = {node.node: Node(node.node, node.address) for node in _members(description)}
        if not nodes:
            return False
        self.nodes = nodes
        self.groups = {group.group: tuple(member.node for member in group.members) for group in description.groups}
        self.directory = description.directory
        known = {node.address for node in nodes.values()}
        self.zones = {address: zone for address, zone in self.zones.items() if address in known}
        if description.node in nodes:
            self.stands(nodes[description.node].address, description.zone)
        return True

    def stands(self, address: str, zone: str) -> None:
        """The server there said its zone; one that makes no sense is none."""
        if zone and not list(zone_problems("zone", zone)):
            self.zones[address] = zone
        else:
            self.zones.pop(address, None)

    def addresses(self, group: int) -> tuple[str, ...]:
        """Of the nodes with a replica of the group; all nodes when that is not known."""
        members = [self.nodes[node].address for node in self.groups.get(group, ()) if node in self.nodes]
        return tuple(members) or tuple(node.address for node in self.nodes.values())


class Discovery:
    """Asks the servers a user named until one describes the cluster."""

    def __init__(self, network: Network, servers: Sequence[str]) -> None:
        self._network = network
        self._servers = servers
        self.problems: dict[str, str] = {}
        """By address: why the last attempt there failed."""

    async def run(self, routes: Routes) -> Cluster:
        """Goes on until it is cancelled: the caller holds the budget."""
        backoff = Backoff(BackoffOptions(first_ms=20, most_ms=500))
        while True:
            description = await self._ask_all()
            if description is not None:
                return _cluster(description, routes)
            await asyncio.sleep(backoff.next_s())

    async def _ask_all(self) -> pb.ClusterDescription | None:
        """The first answer; the others are not waited for."""
        asking = [asyncio.create_task(self._ask(address)) for address in self._servers]
        try:
            while asking:
                done, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
                for task in (task for task in asking if task in done):
                    if (description := task.result()) is not None:
                        return description
                asking = [task for task in asking if task not in done]
            return None
        finally:
            for task in asking:
                task.cancel()

    async def _ask(self, address: str) -> pb.ClusterDescription | None:
        try:
            request = pb.DescribeClusterRequest()
            found: pb.ClusterDescription = await self._network.call(
                address, Method.DESCRIBE_CLUSTER, request, DESCRIBE_TIMEOUT_S
            )
        except Refusal as refusal:
            self.problems[address] = refusal.message
            return None
        if not found.nodes:
            self.problems[address] = "it describes a cluster without nodes"
            return None
        return found


def _cluster(description: pb.ClusterDescription, routes: Routes) -> Cluster:
    cluster = Cluster(bytes(description.cluster), {}, {})
    cluster.learn(description)
    for group in description.groups:
        if group.leader_node in cluster.nodes:
            address = cluster.nodes[group.leader_node].address
            # Hearsay, but the best there is until that node announces itself in the same or a later term.
            routes.learn(group=group.group, term=group.term, address=address, node=group.leader_node)
    return cluster


def _members(description: pb.ClusterDescription) -> list[pb.NodeDescription]:
    return [node for node in description.nodes if node.state != pb.NODE_REMOVED]


class Watchers:
    """The announcement streams of a client."""

    def __init__(self, network: Network, cluster: Cluster, routes: Routes, name: str) -> None:
        self._network = network
        self._cluster = cluster
        self._routes = routes
        self._name = name
        self._tasks: dict[Node, asyncio.Task[None]] = {}
        self._others: dict[asyncio.Task[None], None] = {}
        """Questions on their way, and watches that end, in order."""
        self._broken: dict[int, str] = {}
        self._asking = asyncio.Lock()

    def start(self) -> None:
        """Watch every node there is now, and none that there is no more."""
        known = dict.fromkeys(self._cluster.nodes.values())
        for node in known:
            if node not in self._tasks:
                self._tasks[node] = asyncio.create_task(self._watch(node))
        for node in [node for node in self._tasks if node not in known]:
            task = self._tasks.pop(node)
            self._keep(task)
            task.cancel()
            self._broken.pop(node.node, None)

    def unreachable(self) -> dict[int, str]:
        """Node -> why, for the nodes to which no connection stands."""
        return {
            node: self._broken.get(node, "no connection")
            for node, known in sorted(self._cluster.nodes.items())
            if not self._network.reachable(known.address)
        }

    async def close(self) -> None:
        tasks = [*self._tasks.values(), *self._others]
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _watch(self, node: Node) -> None:
        request = pb.AnnouncementsRequest(cluster=self._cluster.identity, client=self._name)
        backoff = Backoff(WATCH_BACKOFF, budget=self._routes.retries)
        while True:
            later_ms = 0
            try:
                async with contextlib.aclosing(self._network.announcements(node.address, request)) as announcements:
                    async for news in announcements:
                        backoff.reset()
                        self._broken.pop(node.node, None)
                        if news.directory:
                            self._keep(asyncio.create_task(self._learn(node, news.directory)))
                            continue
                        if news.zone:
                            self._cluster.stands(node.address, news.zone)
                            continue
                        self._routes.learn(group=news.group, term=news.term, address=news.address, node=news.node)
                problem = "it ended the stream"
            except Refusal as refusal:
                problem, later_ms = refusal.message, refusal.retry_after_ms
                if refusal.reason is Reason.WRONG_CLUSTER:
                    problem = f"it belongs to another cluster: {problem}"
            self._broken[node.node] = shown(problem)
            self._cluster.stands(node.address, "")  # it says so again, if it comes back with one
            await asyncio.sleep(backoff.next_s(later_ms))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._others[task] = None
        task.add_done_callback(lambda done: self._others.pop(done, None))

    async def _learn(self, node: Node, version: int) -> None:
        """Nodes or members changed: the one that says so tells of them. It says so again when its stream is opened
        anew, so that a few attempts are enough."""
        backoff = Backoff(WATCH_BACKOFF)
        async with self._asking:
            for _ in range(LEARN_ATTEMPTS):
                if version <= self._cluster.directory:
                    return
                request = pb.DescribeClusterRequest()
                try:
                    found = await self._network.call(node.address, Method.DESCRIBE_CLUSTER, request, DESCRIBE_TIMEOUT_S)
                except Refusal:
                    await asyncio.sleep(backoff.next_s())
                    continue
                if self._cluster.learn(found):
                    self.start()
                return
