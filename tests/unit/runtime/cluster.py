"""A cluster of real runtimes, cores, logs and snapshot files in one thread: virtual clock, network and disks in memory.

Nothing happens by itself: `run(ms)` lets time pass in ticks, and after each tick delivers, writes and applies until
all is quiet.
"""

import random
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from consensus.core.interface import Configuration, Entry, NodeId, Payload, ReplicaId
from consensus.runtime import GroupHandle, NodeRuntime, RuntimeOptions
from consensus.runtime.flushing import FlushQueue
from consensus.runtime.interface import Applied, CreateOutcome, Outcome, ReplicaCreated
from consensus.storage.checksum import crc32c
from consensus.storage.errors import StorageFull
from consensus.storage.interface import GroupAppend, Identity, LogStore
from consensus.storage.memory import MemoryFileSystem
from consensus.storage.options import WalOptions
from consensus.storage.snapshots import SnapshotFiles
from consensus.storage.wal import Wal
from consensus.transport.memory import MemoryNetwork

CLUSTER = b"c" * 16
SEGMENT_BYTES = 64 << 10
LENGTH = struct.Struct("<I")


@dataclass
class Clock:
    now: int = 0

    def now_ms(self) -> int:
        return self.now


class Journal:
    """A state machine that remembers every command: applied twice or lost is easy to see."""

    def __init__(self) -> None:
        self.commands: list[bytes] = []

    def apply(self, entry: Entry) -> Any:
        self.commands.append(bytes(entry.payload))
        return len(self.commands)

    def snapshot(self) -> Iterator[Payload]:
        commands = tuple(self.commands)
        return (LENGTH.pack(len(command)) + command for command in commands)

    def restore(self, chunks: Iterator[memoryview]) -> None:
        data, commands, at = b"".join(chunks), [], 0
        while at < len(data):
            (length,) = LENGTH.unpack_from(data, at)
            at += LENGTH.size
            commands.append(data[at : at + length])
            at += length
        self.commands = commands

    def size_bytes(self) -> int:
        return 0


class Listener:
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.own_note = b""
        self.is_drained = True
        self.notes: list[tuple[ReplicaId, bytes]] = []

    def leading(self, term: int) -> None:
        self.events.append(("leading", term))

    def deposed(self, term: int) -> None:
        self.events.append(("deposed", term))

    def leader_changed(self, leader: ReplicaId, term: int) -> None:
        self.events.append(("leader", leader, term))

    def applied(self, batch: Sequence[Applied]) -> None:
        self.events.append(("applied", [entry.index for entry in batch]))

    def restored(self, index: int) -> None:
        self.events.append(("restored", index))

    def handing_over(self, to: ReplicaId) -> None:
        self.events.append(("handing over", to))

    def drained(self) -> bool:
        return self.is_drained

    def note(self) -> bytes:
        return self.own_note

    def noted(self, replica: ReplicaId, note: bytes) -> None:
        self.notes.append((replica, note))

    def of(self, kind: str) -> list[tuple[Any, ...]]:
        return [event for event in self.events if event[0] == kind]


class Writer:
    """`LogWriter`: writes when told to."""

    def __init__(self, wal: LogStore) -> None:
        self.wal = wal
        self.queue = FlushQueue(8 << 20)
        self.turned_away = False
        self.releases: list[tuple[int, int]] = []
        self.held = False
        self.disk_full = False
        self.log: list[str] = []

    def submit(self, append: GroupAppend, done: Callable[[], None]) -> None:
        self.queue.put(append, done)

    def release(self, group: int, below_index: int) -> None:
        self.releases.append((group, below_index))
        self.wal.release(group, below_index)

    def load(self, group: int, entries: Sequence[Entry]) -> tuple[Entry, ...] | None:
        return self.wal.load(group, entries)

    def full(self) -> bool:
        return self.disk_full or self.turned_away or self.wal.full

    def exhausted(self) -> bool:
        return self.turned_away or self.wal.exhausted

    def work(self) -> bool:
        self.wal.prepare()
        if self.held or not self.queue:
            return False
        batch = self.queue.take()
        try:
            self.wal.write([append for append, _ in batch])
            self.turned_away = False
        except StorageFull:
            self.turned_away = True
            self.queue.put_back(batch)
            batch = self.queue.take_for_reserve()
            if not batch:
                return False
            self.wal.write([append for append, _ in batch])
        self.wal.sync()
        for append, done in batch:
            if append.install is not None:
                self.log.append(f"record {append.install.index}")
            done()
        return True


class Lanes:
    """`Lanes`: works when told to, a job at a time."""

    def __init__(self) -> None:
        self.queues: dict[str, deque[tuple[Callable[[], Any], Callable[[Any], None]]]] = {}
        self.held: set[str] = set()
        self.jobs = 0

    def run(self, lane: str, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        self.queues.setdefault(lane, deque()).append((work, done))

    def work(self) -> bool:
        worked = False
        for lane, jobs in list(self.queues.items()):
            if jobs and lane not in self.held:
                work, done = jobs.popleft()
                self.jobs += 1
                done(work())
                worked = True
        return worked


@dataclass
class Node:
    runtime: NodeRuntime
    writer: Writer
    lanes: Lanes
    machine: Journal
    listener: Listener
    handle: GroupHandle
    snapshots: SnapshotFiles
    extra: dict[int, tuple[GroupHandle, Journal, Listener]] = field(default_factory=dict)
    configurations: list[tuple[Configuration, bool]] = field(default_factory=list)
    """What the group's owner was told of."""


class Cluster:
    """`nodes` nodes with one group (1) whose replicas carry their node's number; with more `groups` (2, 3, ...) in
    `Node.extra`, whose preferred leaders are spread."""

    GROUP = 1

    def __init__(
        self,
        nodes: int = 3,
        options: RuntimeOptions | None = None,
        seed: int = 1,
        machine: Callable[[], Journal] = Journal,
        groups: int = 1,
    ) -> None:
        self.machine = machine
        self.wal_options: dict[str, int] = {}
        """Others than the usual, of nodes that are started from now on."""
        self.groups = groups
        self.clock = Clock()
        self.network = MemoryNetwork()
        self.options = options or RuntimeOptions()
        self.members = tuple(range(1, nodes + 1))
        self.configuration = Configuration(self.members)
        self.random = random.Random(seed)
        self.disks = {node: MemoryFileSystem() for node in self.members}
        self.nodes: dict[NodeId, Node] = {}
        for node in self.members:
            self.start(node)
        for node in self.members:
            self.network.connect(node)

    def start(self, node: NodeId) -> Node:
        """A new life of a node on what its disk holds."""
        disk = self.disks[node]
        identity = Identity(cluster=CLUSTER, node=node, node_uuid=bytes([node]) * 16)
        wal, recovery = Wal.open(
            disk,
            "wal",
            identity,
            WalOptions(segment_bytes=SEGMENT_BYTES, reserve_bytes=SEGMENT_BYTES, **self.wal_options),
        )
        writer, lanes, store = Writer(wal), Lanes(), SnapshotFiles(disk, "snapshots")
        seed = self.random.randrange(1 << 30)
        runtime = NodeRuntime(
            node=node,
            recovery=recovery,
            writer=writer,
            snapshots=store,
            lanes=lanes,
            transport=self.network.transport(node),
            clock=self.clock,
            random=lambda group: random.Random(seed + group),
            options=self.options,
        )
        self.nodes[node] = Node(runtime, writer, lanes, self.machine(), Listener(), None, store)  # type: ignore[arg-type]
        self._add_group(node)
        for group in range(2, self.groups + 1):
            self._add_extra(node, group)
        runtime.start()
        return self.nodes[node]

    def _add_group(self, node: NodeId) -> None:
        """The replica of the bootstrap, or the one that an order made here in an earlier life."""
        here = self.nodes[node]
        made = here.runtime.creations.get(self.GROUP)
        if made is None and (node not in self.members or here.runtime.deleted(self.GROUP, node)):
            return
        here.handle = here.runtime.add_group(
            group=self.GROUP,
            replica=made.replica if made is not None else node,
            configuration=made.configuration if made is not None else self.configuration,
            nodes={member: member for member in self.members},
            machine=here.machine,
            listener=here.listener,
            on_configuration=lambda configuration, committed: here.configurations.append((configuration, committed)),
        )

    def join(self, node: NodeId) -> Node:
        """A node more, without replicas."""
        self.disks[node] = MemoryFileSystem()
        return self.restart(node)

    def create(self, node: NodeId, replica: ReplicaId, configuration: Configuration) -> list[CreateOutcome]:
        """Order a replica of the group on that node; its handle is `Node.handle` once it is there."""
        here, outcomes = self.nodes[node], list[CreateOutcome]()

        def done(outcome: CreateOutcome) -> None:
            outcomes.append(outcome)
            if isinstance(outcome, ReplicaCreated):
                here.handle = here.runtime.groups[self.GROUP]

        here.machine, here.listener = self.machine(), Listener()
        here.runtime.create_replica(
            group=self.GROUP,
            replica=replica,
            configuration=configuration,
            machine=here.machine,
            listener=here.listener,
            done=done,
            on_configuration=lambda configuration, committed: here.configurations.append((configuration, committed)),
        )
        return outcomes

    def _add_extra(self, node: NodeId, group: int) -> None:
        machine, listener = Journal(), Listener()
        first = (group - 1) % len(self.members)
        handle = self.nodes[node].runtime.add_group(
            group=group,
            replica=node,
            configuration=Configuration((*self.members[first:], *self.members[:first])),
            nodes={member: member for member in self.members},
            machine=machine,
            listener=listener,
        )
        self.nodes[node].extra[group] = (handle, machine, listener)

    def handles(self) -> list[GroupHandle]:
        """Of all groups, on all nodes that are up."""
        return [handle for node in self.nodes.values() for handle in node.runtime.groups.values()]

    def restart(self, node: NodeId) -> Node:
        started = self.start(node)
        self.network.connect(node)
        return started

    def kill(self, node: NodeId) -> None:
        """kill -9: what was written stays in the page cache."""
        del self.nodes[node]
        self.disks[node].kill()
        self.network.leave(node)

    def crash(self, node: NodeId) -> None:
        """Power is gone: what was not synced is lost."""
        del self.nodes[node]
        self.disks[node].crash(random.Random(7))
        self.network.leave(node)

    def quiet(self) -> None:
        """Deliver, write and apply until there is nothing left to do."""
        for _ in range(10_000):
            worked = self.network.deliver(1000) > 0
            for node in list(self.nodes.values()):
                worked |= node.writer.work()
                worked |= node.lanes.work()
            if not worked:
                return
        raise AssertionError("it never gets quiet")

    def tick(self, ms: int = 10) -> None:
        self.clock.now += ms
        for node in list(self.nodes.values()):
            node.runtime.tick()
        self.quiet()

    def run(self, ms: int) -> None:
        for _ in range(ms // 10):
            self.tick()

    def until(self, condition: Callable[[], bool], ms: int = 5000) -> int:
        """Let time pass until it holds; returns how long it took."""
        for waited in range(0, ms, 10):
            if condition():
                return waited
            self.tick()
        raise AssertionError(f"not within {ms} ms")

    def leader(self) -> Node:
        found: list[Node] = []

        def one() -> bool:
            found[:] = [node for node in self.nodes.values() if node.handle is not None and node.handle.ready_to_serve]
            return len(found) == 1

        self.until(one)
        return found[0]

    def followers(self) -> list[Node]:
        leader = self.leader()
        return [node for node in self.nodes.values() if node is not leader]

    def propose(self, payload: bytes, at: Node | None = None) -> list[Outcome]:
        """Returns the list that the outcome will be in."""
        outcomes: list[Outcome] = []
        (at or self.leader()).handle.propose(payload, crc32c(payload), outcomes.append)
        return outcomes

    def commit(self, *payloads: bytes) -> None:
        """Propose and see them applied everywhere that is up."""
        for payload in payloads:
            self.propose(payload)
        self.quiet()
        self.run(100)
