"""A ledger in the simulator under one fault, and what was seen of it.

Each run has load before, during and after the fault, and ends with all checks of the simulator: nothing acknowledged is
lost or applied twice, histories are linearizable, replicas are equal. Times are virtual milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from consensus.core.interface import NodeId, Status
from consensus.runtime.interface import Committed
from consensus.simulation.case import spread_groups
from consensus.simulation.cluster import Cluster, SimulationOptions, small_runtime_options
from consensus.simulation.faults import Fault, FaultKind
from consensus.simulation.ledger import encode
from consensus.simulation.load import LedgerLoad
from consensus.simulation.network import Wire
from consensus.simulation.node import SimulatedNode
from consensus.simulation.profile import Profile
from consensus.simulation.report import Report
from consensus.simulation.schedule import MS
from consensus.storage.checksum import crc32c

TIMEOUT_MS = small_runtime_options().raft.election_timeout_ms
ELECTION_MS = 1200
"""Longer than an election in good surroundings takes, the delay of the last place included."""
PROBE_MS = 4
STEADY = 1 << 30
"""The number of a client that is no other's."""


@dataclass
class Run:
    """A ledger under a fault, and what was seen of it."""

    cluster: Cluster
    load: LedgerLoad
    report: Report = field(init=False)
    seen: list[tuple[int, NodeId, int]] = field(default_factory=list)
    """(time in ms, node that leads, its term) whenever that changed."""
    commits: list[int] = field(default_factory=list)
    """Times in ms at which more was known committed than before."""
    committed: int = 0

    def at(self, ms: int, action: Callable[[], None]) -> None:
        self.cluster.scheduler.at(ms * MS, action)

    @property
    def now_ms(self) -> int:
        return self.cluster.scheduler.now_us // MS

    def leader(self) -> SimulatedNode:
        node = self.cluster.leader_of(1)
        assert node is not None
        return self.cluster.nodes[node]

    def followers(self) -> list[SimulatedNode]:
        leader = self.leader()
        return [node for node in self.cluster.nodes.values() if node is not leader]

    def status(self, node: SimulatedNode) -> Status | None:
        handle = node.handles.get(1)
        return handle.status().core if handle is not None else None

    def watch(self, look: Callable[[], None], every_ms: int = PROBE_MS) -> None:
        def again() -> None:
            look()
            self.cluster.scheduler.after(every_ms * MS, again)

        again()

    def look_for_leaders(self) -> None:
        node = self.cluster.leader_of(1)
        if node is not None:
            status = self.status(self.cluster.nodes[node])
            assert status is not None
            if status.commit_index > self.committed:
                self.committed = status.commit_index
                self.commits.append(self.now_ms)
            if not self.seen or self.seen[-1][1:] != (node, status.term):
                self.seen.append((self.now_ms, node, status.term))

    def elections(self, from_ms: int, to_ms: int = 1 << 60) -> list[tuple[int, NodeId, int]]:
        return [one for one in self.seen if from_ms < one[0] <= to_ms]

    def term(self) -> int:
        """The highest that any replica is in."""
        statuses = [self.status(node) for node in self.cluster.nodes.values()]
        return max(status.term for status in statuses if status is not None)

    def acknowledged(self, from_ms: int, to_ms: int) -> int:
        lines = self.load._histories[1]._lines.values()
        return sum(from_ms * MS <= line.acknowledged_us < to_ms * MS for line in lines)

    def propose_steadily(self) -> None:
        """One command after the other at whoever leads: clients lose their time at those who are away."""
        number = 1

        def answered(outcome: object) -> None:
            nonlocal number
            number += isinstance(outcome, Committed)
            self.cluster.scheduler.after(5 * MS, propose)

        def propose() -> None:
            node = self.cluster.leader_of(1)
            if node is None:
                self.cluster.scheduler.after(5 * MS, propose)
                return
            payload = encode(STEADY, number, b"")
            self.cluster.nodes[node].handles[1].propose(payload, crc32c(payload), answered)

        propose()

    def longest_gap(self, from_ms: int, to_ms: int) -> int:
        """The longest time without a commit."""
        times = [from_ms, *(ms for ms in self.commits if from_ms < ms < to_ms), to_ms]
        return max(after - before for before, after in pairwise(times))

    def run(self, faulty: tuple[int, int], *, during: bool = True) -> Run:
        """`faulty`: from when to when something was wrong. `during`: whether writes went through meanwhile."""
        self.watch(self.look_for_leaders)
        self.report = self.cluster.run()
        self.report.raise_if_failed()
        assert self.acknowledged(0, faulty[0]), "no load before"
        assert not during or self.acknowledged(*faulty), "no load during"
        assert self.acknowledged(faulty[1], 1 << 40), "no load after"
        return self


def prepare(
    plan: Sequence[Fault] = (),
    *,
    seed: int = 1,
    nodes: int = 3,
    replicas: int = 0,
    profile: Profile | None = None,
    load_ms: int = 3000,
    clients: int = 3,
    options: SimulationOptions | None = None,
    wire: Wire | None = None,
) -> Run:
    ids = tuple(range(1, nodes + 1))
    load = LedgerLoad(seed=seed, clients=clients, commands=3)
    cluster = Cluster(
        seed=seed,
        nodes=ids,
        groups=spread_groups(ids, (1,), replicas or nodes),
        application=load,
        profile=profile or Profile(),
        plan=tuple(plan),
        options=replace(options or SimulationOptions(), load_ms=load_ms, heal_some=False, keep_trace=True),
        wire=wire,
        administrator=True,
    )
    return Run(cluster, load)


def fault(kind: FaultKind, at_ms: int, for_ms: int, **rest: object) -> Fault:
    return Fault(at_ms=at_ms, kind=kind, for_ms=for_ms, **rest)  # type: ignore[arg-type]


def of_leader(kind: FaultKind, at_ms: int, for_ms: int, amount: int = 0) -> Fault:
    return fault(kind, at_ms, for_ms, leader_of=1, amount=amount)


SMALL_SNAPSHOTS = SimulationOptions(
    runtime=replace(small_runtime_options(), snapshot_log_bytes_min=4096, keep_bytes_max=0), snapshot_chunk_bytes=1024
)


def lagging(
    plan: Sequence[Fault] = (), *, seed: int = 1, profile: Profile | None = None, wire: Wire | None = None
) -> Run:
    """A follower is away until only a snapshot helps it."""
    run = prepare(plan, seed=seed, profile=profile, options=SMALL_SNAPSHOTS, load_ms=3500, clients=5, wire=wire)
    follower_away(run, 700)
    return run


def follower_away(run: Run, from_ms: int) -> None:
    """One of them, until 1.7 s."""

    def away() -> None:
        victim = run.followers()[0]
        victim.kill("killed, for long")
        run.at(1700, victim.start)

    run.at(from_ms, away)
