"""A whole simulated cluster, its faults, its healing and its end.

Owns the nodes and the course of a run: load and faults; then everything is healed, and what was begun must be finished
within a bound and all replicas must be equal. Invariants: checks run after every event, on what the event touched; a
run depends on its seed and options alone. Must not know: what the load is (an `Application` does).
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from consensus.core.interface import GroupId, NodeId, ReplicaId, Role
from consensus.core.raft import RaftCore
from consensus.core.raft.config import RaftConfig
from consensus.runtime.interface import GroupListener, StateMachine
from consensus.runtime.options import RuntimeOptions
from consensus.simulation.checkers import DurableLog, Lives, Speech, Witness
from consensus.simulation.errors import Misused, Violated
from consensus.simulation.faults import Fault, FaultKind
from consensus.simulation.network import Network, Wire
from consensus.simulation.node import GroupSpec, SimulatedNode, Surroundings
from consensus.simulation.profile import Profile
from consensus.simulation.report import Report
from consensus.simulation.schedule import MS, Scheduler, stream
from consensus.simulation.trace import Trace
from consensus.storage.interface import Recovery
from consensus.storage.options import WalOptions

LOOK_AGAIN_US = 50 * MS
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
        keep_bytes_max=4 * 1024,
        transfer_keep_bytes_max=64 * 1024,
    )


def small_wal_options() -> WalOptions:
    return WalOptions(segment_bytes=64 * 1024, reserve_bytes=32 * 1024, flush_bytes_max=64 * 1024)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationOptions:
    """The course of a run, beside its faults."""

    load_ms: int = 5000
    """Load and faults last at most so long; then everything is healed."""
    heal_ms_max: int = 20_000
    """After healing: what was begun is finished, and replicas are equal, within this time."""
    events_max: int = 400_000
    """A run that needs more is one in which something spins."""
    runtime: RuntimeOptions = field(default_factory=small_runtime_options)
    wal: WalOptions = field(default_factory=small_wal_options)


class Application(Protocol):
    """The load, the state machines it meets, and what must have become of it."""

    def machine(self, node: NodeId, group: GroupId) -> tuple[StateMachine, GroupListener]: ...

    def begin(self, cluster: Cluster) -> None: ...

    def running(self, node: SimulatedNode) -> None: ...

    def stopped(self, node: NodeId) -> None: ...

    def heal(self) -> None:
        """No more faults of its own."""

    def done(self) -> bool:
        """Everything that was begun is finished."""

    def waits_for(self) -> str:
        """Why it is not done, for people."""

    def digest(self, machine: StateMachine) -> bytes:
        """Equal for equal states."""

    def check(self) -> None:
        """Raise `Violated` when a promise to a client was broken. Called at the end, all replicas being equal."""

    def acknowledged(self) -> int: ...


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
    ) -> None:
        problems = options.runtime.validate()
        if problems:
            raise Misused("; ".join(problems))
        self.seed = seed
        self.scheduler = Scheduler()
        self.trace = Trace(self.scheduler)
        self.network = Network(self.scheduler, stream(seed, "network"), profile, self.trace, wire)
        self.groups = tuple(groups)
        self.counts: Counter[str] = Counter()
        self._homes = {spec.group: spec.nodes for spec in groups}
        self._options = options
        self._plan = tuple(plan)
        self._application = application
        self._lives = Lives(self.trace, elected=self._elected, peer=self._peer)
        self._random = stream(seed, "cluster")
        self._healed = False
        self._ambushes: list[Fault] = []
        around = Surroundings(
            seed=seed,
            scheduler=self.scheduler,
            network=self.network,
            trace=self.trace,
            speech=Speech(),
            witnesses={spec.group: Witness(spec.group) for spec in groups},
            groups=self.groups,
            runtime_options=options.runtime,
            wal_options=options.wal,
        )
        self.nodes = {node: SimulatedNode(node, around, self) for node in nodes}
        for host in self.nodes.values():
            self.network.join(host)

    # --- a node's owner ---------------------------------------------------------------------------------------------

    def machine(self, node: NodeId, group: GroupId) -> tuple[StateMachine, GroupListener]:
        return self._application.machine(node, group)

    def running(self, node: SimulatedNode) -> None:
        self.counts["starts"] += 1
        self._application.running(node)

    def recovered(self, node: SimulatedNode, recovery: Recovery) -> None:
        self.counts["torn tails"] += bool(recovery.discarded_tail_bytes)
        for group in recovery.groups.values():
            self.counts["entries recovered"] += len(group.entries)

    def stopped(self, node: SimulatedNode, reason: str) -> None:
        self._count(node)
        self._application.stopped(node.node)
        if self._healed:
            raise Violated(f"node {node.node} ended although nothing was wrong with it: {reason}")

    def _count(self, node: SimulatedNode) -> None:
        for handle in node.handles.values():
            status = handle.status()
            self.counts["snapshots written"] += status.snapshots_written
            self.counts["snapshots sent"] += status.snapshots_sent
            for reason, count in status.dropped.items():
                self.counts[f"dropped {reason}"] += count

    def _peer(self, group: GroupId, replica: ReplicaId) -> tuple[RaftCore, DurableLog] | None:
        """A replica that runs, and its disk."""
        node = self.nodes[self._homes[group][replica]]
        core = node.handles[group].core if group in node.handles else None
        return (core, node.durable[group]) if isinstance(core, RaftCore) else None

    def after_event(self, node: SimulatedNode) -> None:
        for group, handle in node.handles.items():
            if handle.problem:
                raise Violated(f"node {node.node}: group {group} does not run: {handle.problem}")
            if isinstance(handle.core, RaftCore):
                self._lives.look(group, handle.core, node.durable[group])

    # --- the run ----------------------------------------------------------------------------------------------------

    def run(self) -> Report:
        """The whole course. Never raises for what it finds: the report says it."""
        failure = ""
        healed_at_us = 0
        try:
            self._begin()
            self._run_until(self._options.load_ms * MS, lambda: False)
            self._heal()
            healed_at_us = self.scheduler.now_us
            self._run_until(healed_at_us + self._options.heal_ms_max * MS, self._finished)
            if not self._finished():
                raise Violated(f"not done {self._options.heal_ms_max} ms after healing: {self._waits_for()}")
            self._check_equal()
            self._application.check()
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
            trace=self.trace.text() if failure else "",
            plan=tuple(f"{fault.at_ms:8} ms  {fault.describe()}" for fault in self._plan),
            events=self.scheduler.events,
            simulated_ms=self.scheduler.now_us // MS,
            healed_ms=(self.scheduler.now_us - healed_at_us) // MS,
            terms=sum(map(len, self._lives.leaders.values())),
            acknowledged=self._application.acknowledged(),
            counts=dict(self.counts),
        )

    def _begin(self) -> None:
        for node in self.nodes.values():
            self.scheduler.after(self._random.randrange(START_SPREAD_US), node.start)
        for fault in self._plan:
            self.scheduler.at(fault.at_ms * MS, lambda fault=fault: self._come(fault))  # type: ignore[misc]
        self._application.begin(self)

    def _run_until(self, until_us: int, finished: Callable[[], bool]) -> None:
        scheduler = self.scheduler
        look_at_us = scheduler.now_us
        while scheduler.now_us < until_us:
            if scheduler.now_us >= look_at_us:
                look_at_us = scheduler.now_us + LOOK_AGAIN_US
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

    # --- faults -----------------------------------------------------------------------------------------------------

    def _come(self, fault: Fault) -> None:
        if fault.ambush_ms is None:
            self._strike(fault)
        else:
            self._ambushes.append(fault)

    def _elected(self, group: GroupId) -> None:
        fault = next((fault for fault in self._ambushes if fault.leader_of == group), None)
        if fault is not None:
            self._ambushes.remove(fault)
            self.scheduler.after((fault.ambush_ms or 0) * MS, lambda: self._strike(fault))

    def _strike(self, fault: Fault) -> None:
        if self._healed:
            return
        hit = list(fault.nodes)
        if fault.leader_of is not None:
            leader = self.leader_of(fault.leader_of)
            if leader is not None:
                hit.append(leader)
        self.trace.add("fault", f"{fault.describe()}{f' (hits {hit})' if hit else ''}")
        self.counts[fault.kind.value] += 1
        undo = self._strike_links(fault) if fault.links else self._strike_nodes(fault, hit)

        def undo_unless_healed() -> None:
            if not self._healed:
                self.trace.add("fault", f"is over: {fault.describe()}")
                undo()

        self.scheduler.after(fault.for_ms * MS, undo_unless_healed)

    def _strike_links(self, fault: Fault) -> Callable[[], None]:
        if fault.kind is FaultKind.CUT:
            self.network.cut(fault.links)
            return lambda: self.network.heal(fault.links)
        if fault.kind is FaultKind.CLOG:
            self.network.clog(fault.links, fault.amount)
            return lambda: self.network.clog(fault.links, -fault.amount)
        for a, b in fault.links:
            self.network.connections.reset(a, b)
        return lambda: None

    def _strike_nodes(self, fault: Fault, hit: list[NodeId]) -> Callable[[], None]:
        nodes = [self.nodes[node] for node in hit]
        for node in nodes:
            if not node.running:
                continue
            if fault.kind is FaultKind.KILL:
                node.kill("killed")
            elif fault.kind is FaultKind.POWER:
                node.power_cut("struck")
            elif fault.kind is FaultKind.POWER_DURING_IO:
                node.filesystem.faults.stop_call = node.filesystem.faults.calls + fault.amount
            elif fault.kind is FaultKind.SYNC_FAILS:
                node.filesystem.faults.fail_syncs = 1
            elif fault.kind is FaultKind.PAUSE:
                node.pause()
            elif fault.kind is FaultKind.SLOW_DISK:
                node.disk_lag_us += fault.amount * MS
        return lambda: self._restore(fault, nodes)

    def _restore(self, fault: Fault, nodes: list[SimulatedNode]) -> None:
        for node in nodes:
            if fault.kind is FaultKind.PAUSE:
                node.resume()
            elif fault.kind is FaultKind.SLOW_DISK:
                node.disk_lag_us = max(0, node.disk_lag_us - fault.amount * MS)
            else:
                node.start()

    def _heal(self) -> None:
        self.trace.add("fault", "everything heals")
        self.network.heal_all()
        self.network.profile = self.network.profile.calm()
        for node in self.nodes.values():
            node.heal()
        self._healed = True
        self._application.heal()

    # --- the end ----------------------------------------------------------------------------------------------------

    def _finished(self) -> bool:
        return self._application.done() and all(self._converged(spec) for spec in self.groups)

    def _converged(self, spec: GroupSpec) -> bool:
        handles = [self.nodes[node].handles.get(spec.group) for node in spec.nodes.values()]
        states = [handle.status().core for handle in handles if handle is not None]
        running = [state for state in states if state is not None]
        if len(running) != len(spec.nodes):
            return False
        leads = [state for state in running if state.role is Role.LEADER]
        last = {(state.last_index, state.commit_index, state.applied_index) for state in running}
        machines = {self.nodes[node].machines[spec.group].last_index for node in spec.nodes.values()}
        return len(leads) == 1 and len(last) == 1 and len(set(next(iter(last)))) == 1 and len(machines) == 1

    def _waits_for(self) -> str:
        waits = [] if self._application.done() else [self._application.waits_for()]
        for spec in self.groups:
            if not self._converged(spec):
                waits.append(f"replicas of group {spec.group} to become equal")
        return "; ".join(waits)

    def _check_equal(self) -> None:
        for spec in self.groups:
            digests = {
                node: self._application.digest(self.nodes[node].machines[spec.group].inner).hex()
                for node in spec.nodes.values()
            }
            if len(set(digests.values())) != 1:
                raise Violated(f"group {spec.group}: states differ: {digests}")
