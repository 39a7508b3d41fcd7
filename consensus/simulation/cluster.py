"""A whole simulated cluster, its faults, its healing and its end.

Owns the nodes and the course of a run: load and faults; then some nodes that can decide everything are healed, and what
was begun must be finished within a bound; then all, and all replicas must be equal. Invariants: checks run after every
event, on what the event touched; a run depends on its seed and options alone. Must not know: what the load is (an
`Application` does), how faults are carried out.
"""

from __future__ import annotations

import random
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from consensus.core.interface import Configuration, GroupId, NodeId, ReplicaId, Role
from consensus.core.raft import RaftCore
from consensus.core.raft.config import RaftConfig
from consensus.runtime.group import GroupHandle
from consensus.runtime.interface import GroupListener, StateMachine
from consensus.runtime.options import RuntimeOptions
from consensus.simulation.administrator import Administrator
from consensus.simulation.bounds import check_bounds
from consensus.simulation.errors import Misused, Violated
from consensus.simulation.faults import Fault
from consensus.simulation.lives import DurableLog, Lives
from consensus.simulation.network import Network, Wire
from consensus.simulation.node import GroupSpec, SimulatedNode, Surroundings
from consensus.simulation.profile import Profile
from consensus.simulation.report import Report
from consensus.simulation.requests import Requests
from consensus.simulation.roster import Roster
from consensus.simulation.schedule import MS, Scheduler, stream
from consensus.simulation.speech import Speech
from consensus.simulation.strikes import Strikes
from consensus.simulation.trace import Trace
from consensus.simulation.witness import Witness
from consensus.storage.interface import Recovery
from consensus.storage.options import WalOptions

LOOK_AGAIN_US = 50 * MS
UNLIMITED_BYTES = 1 << 62
REPAIR_AGAIN_US = 200 * MS
START_SPREAD_US = 50 * MS


def small_runtime_options() -> RuntimeOptions:
    """Bounds so low that short runs meet them: snapshots, compaction, full windows."""
    return RuntimeOptions(
        raft=RaftConfig(
            append_bytes_max=8 * 1024,
            probe_bytes_max=1024,
            inflight_messages_max=8,
            inflight_bytes_max=32 * 1024,
            persist_bytes_max=16 * 1024,
            committed_bytes_max=16 * 1024,
            uncommitted_bytes_max=128 * 1024,
        ),
        snapshot_log_bytes_min=24 * 1024,
        snapshot_log_multiple=2,
        snapshot_piece_bytes=4 * 1024,
        snapshot_budget_bytes=16 * 1024,
        keep_bytes_max=4 * 1024,
        transfer_keep_bytes_max=64 * 1024,
        chunk_bytes_min=1,
        transfer_resend_ms=40,
    )


def small_wal_options() -> WalOptions:
    return WalOptions(segment_bytes=64 * 1024, reserve_bytes=32 * 1024, flush_bytes_max=64 * 1024)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationOptions:
    """The course of a run, beside its faults."""

    load_ms: int = 5000
    """Load and faults last at most so long; then nodes are healed."""
    heal_ms_max: int = 20_000
    """After healing some nodes, and again after healing all: what was begun is finished within this time."""
    heal_some: bool = True
    """Whether some nodes may be healed before the others."""
    events_max: int = 400_000
    """A run that needs more is one in which something spins."""
    keep_trace: bool = False
    """Whether the report holds the trace also when all was well."""
    runtime: RuntimeOptions = field(default_factory=small_runtime_options)
    wal: WalOptions = field(default_factory=small_wal_options)
    snapshot_chunk_bytes: int = 1 << 20
    """Small enough, and a snapshot is sent in many pieces."""
    replicated: bool = False
    """Durability `replicated` (RULES W8): what a majority wrote is acknowledged, and machines stop by minorities."""


class Application(Protocol):
    """The load, the state machines it meets, and what must have become of it."""

    def machine(self, node: NodeId, group: GroupId) -> tuple[StateMachine, GroupListener]: ...

    def begin(self, cluster: Cluster) -> None: ...

    def running(self, node: SimulatedNode) -> None: ...

    def stopped(self, node: NodeId) -> None: ...

    def crash_clients(self, source: random.Random) -> None:
        """Some clients end, and forget what they asked for."""

    def heal(self) -> None:
        """No more faults of its own; finish what was begun, and something more. Comes twice."""

    def done(self) -> bool:
        """Everything that was begun is finished."""

    def waits_for(self) -> str:
        """Why it is not done, for people."""

    def digest(self, machine: StateMachine) -> bytes:
        """Equal for equal states."""

    def check(self) -> None:
        """Raise `Violated` when a promise to a client was broken. Called at the end, all replicas being equal."""

    def acknowledged(self) -> int: ...

    def operations_checked(self) -> int:
        """Answers to clients that were held against what is promised."""


class Cluster:
    def __init__(
        self,
        *,
        seed: int,
        nodes: Sequence[NodeId],
        groups: Sequence[GroupSpec],
        application: Application,
        profile: Profile,
        plan: Sequence[Fault],
        options: SimulationOptions,
        wire: Wire | None = None,
        administrator: bool = False,
        hasty: bool = False,
    ) -> None:
        """`administrator`: members of groups may change, and replicas that can't run any more are replaced. `hasty`:
        they change as fast as they can, two at a time."""
        problems = options.runtime.validate()
        if problems:
            raise Misused("; ".join(problems))
        self.seed = seed
        self.scheduler = Scheduler()
        self.trace = Trace(self.scheduler)
        self.network = Network(self.scheduler, stream(seed, "network"), profile, self.trace, wire)
        self.groups = tuple(groups)
        self.application = application
        self.counts: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        """Faults that came, by kind."""
        self.requests = Requests()
        self.roster = Roster(groups)
        self._options = options
        self._plan = tuple(plan)
        self._lives = Lives(
            self.trace,
            elected=self._elected,
            peer=self._peer,
            durable=self._durable,
            configured=self._configured,
            overruled=self.roster.overruled,
        )
        self._random = stream(seed, "cluster")
        self._whole: frozenset[NodeId] = frozenset()
        """Nodes that were healed: nothing happens to them any more."""
        around = Surroundings(
            seed=seed,
            scheduler=self.scheduler,
            network=self.network,
            trace=self.trace,
            speech=Speech(),
            witnesses={spec.group: Witness(spec.group) for spec in groups},
            roster=self.roster,
            groups=self.groups,
            runtime_options=options.runtime,
            wal_options=options.wal,
            snapshot_chunk_bytes=options.snapshot_chunk_bytes,
            replicated=options.replicated,
        )
        self.nodes = {node: SimulatedNode(node, around, self) for node in nodes}
        for host in self.nodes.values():
            self.network.join(host)
        self.administrator = Administrator(self, seed, hasty=hasty) if administrator else None
        self._strikes = Strikes(self, self._plan)
        self.network.piece_arrives = self._strikes.piece_arrives

    # --- a node's owner ---------------------------------------------------------------------------------------------

    def machine(self, node: NodeId, group: GroupId) -> tuple[StateMachine, GroupListener]:
        return self.application.machine(node, group)

    def running(self, node: SimulatedNode) -> None:
        self.counts["starts"] += 1
        self.application.running(node)

    def recovered(self, node: SimulatedNode, recovery: Recovery) -> None:
        self.counts["torn tails"] += bool(recovery.discarded_tail_bytes)
        for group in recovery.groups.values():
            self.counts["entries recovered"] += len(group.entries)

    def stopped(self, node: SimulatedNode, reason: str) -> None:
        self._count(node)
        self.requests.node_gone(node.node)
        self.application.stopped(node.node)
        if node.node in self._whole:
            raise Violated(f"node {node.node} ended although nothing was wrong with it: {reason}")

    def _count(self, node: SimulatedNode) -> None:
        self.counts["entries read back"] += node.read_back
        node.read_back = 0
        for handle in node.handles.values():
            status = handle.status()
            self.counts["snapshots written"] += status.snapshots_written
            self.counts["snapshots sent"] += status.snapshots_sent
            for reason, count in status.dropped.items():
                self.counts[f"dropped {reason}"] += count

    def after_event(self, node: SimulatedNode) -> None:
        for group, handle in node.handles.items():
            core = handle.core
            if isinstance(core, RaftCore):
                self._lives.look(group, core)
            if handle.problem and (group, handle.replica) not in self.roster.impaired and not was_removed(handle):
                raise Violated(f"node {node.node}: group {group} does not run: {handle.problem}")
        if self.roster.impaired:
            node.look_whole()

    # --- what the checks ask ----------------------------------------------------------------------------------------

    def _elected(self, group: GroupId) -> None:
        self._strikes.elected(group)
        if self.administrator is not None:
            self.administrator.elected(group)

    def _configured(self, group: GroupId, index: int, term: int, configuration: Configuration, committed: int) -> None:
        self.roster.configured(group, index, term, configuration, committed)
        self._strikes.configured(group, configuration)

    def _peer(self, group: GroupId, replica: ReplicaId) -> RaftCore | None:
        """The core of a replica that runs."""
        host = self.nodes.get(self.roster.node_of(group, replica))
        handle = host.handles.get(group) if host is not None else None
        core = handle.core if handle is not None and handle.replica == replica else None
        return core if isinstance(core, RaftCore) else None

    def _durable(self, group: GroupId, replica: ReplicaId) -> DurableLog | None:
        """What the disk of a replica holds, whether it runs or not; None while it counts for nothing."""
        node = self.roster.node_of(group, replica)
        if (group, replica) in self.roster.impaired or self.roster.hosted(node, group) != replica:
            return None
        return self.nodes[node].durable.get(group)

    @property
    def whole(self) -> frozenset[NodeId]:
        """Nodes that were healed; none while faults come. The others may stay dead."""
        return self._whole

    def committed(self, group: GroupId) -> int:
        """The highest index that any replica was seen to know committed."""
        return self._lives.committed(group)

    # --- the run ----------------------------------------------------------------------------------------------------

    def run(self) -> Report:
        """The whole course. Never raises for what it finds: the report says it."""
        failure = ""
        healed_at_us = 0
        try:
            self._begin()
            self._run_until(self._options.load_ms * MS, lambda: False)
            healed_at_us = self.scheduler.now_us
            core = self._draw_core()
            if len(core) < len(self.nodes):
                self.counts["healed some nodes first"] += 1
                self._heal(core)
                self._finish("some nodes", self.application.done)
            self._heal(self.nodes)
            self._repair()
            self._finish("all nodes", self._finished)
            self._check_equal()
            self.application.check()
        except Exception as error:
            # Whatever a real process would die of is a finding, and wants its trace.
            failure = f"{type(error).__name__}: {error}"
            self.trace.add("failure", "".join(traceback.format_exception(error)))
        for node in self.nodes.values():
            self._count(node)
        return Report(
            seed=self.seed,
            failure=failure,
            trace_hash=self.trace.hash(),
            trace=self.trace.text() if failure or self._options.keep_trace else "",
            plan=tuple(f"{fault.at_ms:8} ms  {fault.describe()}" for fault in self._plan),
            events=self.scheduler.events,
            simulated_ms=self.scheduler.now_us // MS,
            healed_ms=(self.scheduler.now_us - healed_at_us) // MS,
            terms=sum(map(len, self._lives.leaders.values())),
            acknowledged=self.application.acknowledged(),
            operations_checked=self.application.operations_checked(),
            faults=dict(self.faults),
            counts={**self.counts, **self.requests.answered},
        )

    def _begin(self) -> None:
        for node in self.nodes.values():
            self.scheduler.after(self._random.randrange(START_SPREAD_US), node.start)
        self._strikes.begin()
        self.application.begin(self)

    def _finish(self, healed: str, finished: Callable[[], bool]) -> None:
        self._run_until(self.scheduler.now_us + self._options.heal_ms_max * MS, finished)
        if not finished():
            raise Violated(f"not done {self._options.heal_ms_max} ms after healing {healed}: {self._waits_for()}")

    def _run_until(self, until_us: int, finished: Callable[[], bool]) -> None:
        scheduler = self.scheduler
        look_at_us = scheduler.now_us
        while scheduler.now_us < until_us:
            if scheduler.now_us >= look_at_us:
                look_at_us = scheduler.now_us + LOOK_AGAIN_US
                check_bounds(self.nodes.values(), self._options.runtime)
                if finished():
                    return
            if scheduler.events > self._options.events_max:
                raise Violated(f"more than {self._options.events_max} events: something spins")
            scheduler.step(until_us)

    def leader_of(self, group: GroupId) -> NodeId | None:
        """The node of the replica that leads in the highest term."""
        found: tuple[int, NodeId] | None = None
        for node in self.nodes.values():
            handle = node.handles.get(group)
            status = handle.status().core if handle is not None else None
            if status is not None and status.role is Role.LEADER and (found is None or status.term > found[0]):
                found = (status.term, node.node)
        return found[1] if found else None

    # --- healing ----------------------------------------------------------------------------------------------------

    def _heal(self, nodes: Collection[NodeId]) -> None:
        self.trace.add("fault", f"nodes {sorted(nodes)} heal")
        self._strikes.end()
        if self.administrator is not None:
            self.administrator.settle()
        self.network.heal_among(nodes)
        self._whole = frozenset(nodes)
        for node in self.nodes.values():
            # A leader on a full disk keeps its office, and its clients wait (RULES W5).
            node.filesystem.faults.capacity_bytes = UNLIMITED_BYTES
        for number in sorted(nodes):
            self.nodes[number].heal()
        self.application.heal()

    def _repair(self) -> None:
        """What can't run any more is replaced, as soon as that shows: now and then until the end."""
        if self.administrator is not None:
            self.administrator.repair()
            self.scheduler.after(REPAIR_AGAIN_US, self._repair)

    def give_empty_disk(self, node: SimulatedNode) -> None:
        """What an operator does with a node on whose disk no replica can run: it comes back as a new one."""
        whole, self._whole = self._whole, frozenset()
        node.wipe(f"its operator gives it an empty disk: {node.damaged}")
        node.start()
        self._whole = whole

    def _draw_core(self) -> list[NodeId]:
        """Nodes that can decide everything: of each group a quorum is on them, of replicas that are whole."""
        order = self._random.sample(sorted(self.nodes), len(self.nodes))
        core: list[NodeId] = []
        if self._options.heal_some and self._random.random() < 0.6:
            while order and not self.roster.can_decide(core):
                core.append(order.pop())
        return core if core and self.roster.can_decide(core) else list(self.nodes)

    # --- the end ----------------------------------------------------------------------------------------------------

    def _finished(self) -> bool:
        return self.application.done() and not self._waits()

    def _converged(self, spec: GroupSpec) -> bool:
        nodes = self.comparable(spec.group)
        handles = [node.handles.get(spec.group) for node in nodes]
        states = [handle.status().core for handle in handles if handle is not None]
        running = [state for state in states if state is not None]
        if len(running) != len(nodes):
            return False
        leads = [state for state in running if state.role is Role.LEADER]
        last = {(state.last_index, state.commit_index, state.applied_index) for state in running}
        machines = {node.machines[spec.group].last_index for node in nodes}
        return len(leads) == 1 and len(last) == 1 and len(set(next(iter(last)))) == 1 and len(machines) == 1

    def comparable(self, group: GroupId) -> list[SimulatedNode]:
        """Where the group's replicas are, without those that can't run for damage."""
        nodes = [self.nodes[node] for node in self.roster.nodes_of(group)]
        return [node for node in nodes if not node.beyond_repair(group)]

    def _waits(self) -> list[str]:
        waits = [f"replicas of group {spec.group} to become equal" for spec in self.groups if not self._converged(spec)]
        waits += self.administrator.waits_for() if self.administrator is not None else []
        return waits or self.requests.open()

    def _waits_for(self) -> str:
        return "; ".join(([] if self.application.done() else [self.application.waits_for()]) + self._waits())

    def _check_equal(self) -> None:
        for spec in self.groups:
            digests = {
                node.node: self.application.digest(node.machines[spec.group].inner).hex()
                for node in self.comparable(spec.group)
            }
            if len(set(digests.values())) != 1:
                raise Violated(f"group {spec.group}: states differ: {digests}")

    def example(self, group: GroupId) -> StateMachine:
        """The state machine of a replica that runs; all are equal at the end."""
        return self.comparable(group)[0].machines[group].inner


def was_removed(handle: GroupHandle) -> bool:
    """It does not run because it is no member any more."""
    return handle.core is not None and handle.core.status().removed
