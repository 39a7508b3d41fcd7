"""One simulated process: the real runtime, log and snapshots over a disk in memory, with crash and restart.

Owns a node's disk, its lives, and the guard around everything that runs in it. Invariants: an event scheduled in one
life never runs in the next; while paused nothing of it runs; what it throws either ends the process, as it would end a
real one, or is a bug and ends the simulation. Must not know: why it is crashed, what its groups are for.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from consensus.core.interface import Configuration, GroupId, NodeId, Randomness, ReplicaId
from consensus.runtime.behind import Behind
from consensus.runtime.group import GroupHandle
from consensus.runtime.interface import (
    CreateOutcome,
    DeleteOutcome,
    GroupListener,
    Refused,
    ReplicaCreated,
    ReplicaDeleted,
    StateMachine,
)
from consensus.runtime.node import NodeRuntime
from consensus.runtime.options import RuntimeOptions
from consensus.simulation.lives import DurableLog
from consensus.simulation.network import Network, SimulatedTransport
from consensus.simulation.profile import Profile
from consensus.simulation.roster import Roster
from consensus.simulation.schedule import MS, DriftingClock, Scheduler, stream
from consensus.simulation.speech import Speech
from consensus.simulation.threads import SimulatedLanes, SimulatedLogWriter
from consensus.simulation.trace import Trace
from consensus.simulation.witness import Witness, WitnessedMachine
from consensus.storage.errors import StorageFailed, StorageFull
from consensus.storage.identity import load_or_create
from consensus.storage.interface import GroupAppend, Recovery
from consensus.storage.lifemark import open_log
from consensus.storage.memory import FaultPlan, MemoryFileSystem, PowerLost
from consensus.storage.options import WalOptions
from consensus.storage.snapshots import SnapshotFiles

DIRECTORY = "/data"
CLUSTER = b"simulated-------"
"""16 bytes."""


@dataclass(frozen=True, slots=True)
class GroupSpec:
    """A group and where its replicas live."""

    group: GroupId
    configuration: Configuration
    nodes: Mapping[ReplicaId, NodeId]

    def replica_on(self, node: NodeId) -> ReplicaId | None:
        return next((replica for replica, at in self.nodes.items() if at == node), None)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all nodes of a simulation share."""

    seed: int
    scheduler: Scheduler
    network: Network
    trace: Trace
    speech: Speech
    witnesses: Mapping[GroupId, Witness]
    roster: Roster
    groups: tuple[GroupSpec, ...]
    runtime_options: RuntimeOptions
    wal_options: WalOptions
    snapshot_chunk_bytes: int
    replicated: bool = False
    """Durability `replicated` (RULES W8)."""


class Owner(Protocol):
    """Who looks after the node."""

    def machine(self, node: NodeId, group: GroupId) -> tuple[StateMachine, GroupListener]:
        """A fresh, empty state machine, and who listens, for a new life of that replica."""

    def running(self, node: SimulatedNode) -> None:
        """All its groups were added; called before the first event of this life."""

    def recovered(self, node: SimulatedNode, recovery: Recovery) -> None: ...

    def stopped(self, node: SimulatedNode, reason: str) -> None:
        """Called while its groups can still be looked at."""

    def after_event(self, node: SimulatedNode) -> None: ...


class SimulatedNode:
    def __init__(self, node: NodeId, surroundings: Surroundings, owner: Owner) -> None:
        self.node = node
        self.filesystem = MemoryFileSystem()
        self.handles: dict[GroupId, GroupHandle] = {}
        self.machines: dict[GroupId, WitnessedMachine] = {}
        self._creating: set[GroupId] = set()
        """Groups of which a replica is being made here: an order that comes again changes nothing of it."""
        self.durable: dict[GroupId, DurableLog] = {}
        self.disk_lag_us = 0
        self.read_back = 0
        """Entries that came back from the log on disk and were not counted yet."""
        self.wipes = 0
        """How often its disk was lost with all that it held."""
        self.damaged = ""
        """Why replicas that this disk does not name can't run on it, or none at all."""
        self._around = surroundings
        self._owner = owner
        self._random = stream(surroundings.seed, f"node {node}")
        self._runtime: NodeRuntime | None = None
        self._life = 1
        self._paused = False
        self._stalled = False
        self._backlog: list[tuple[str, Callable[[], None]]] = []
        """Of the host's thread."""
        self._thread_backlog: list[Callable[[], None]] = []
        self._name = f"n{node}"
        drift_max = surroundings.network.profile.drift_ppm_max
        self.clock = DriftingClock(
            surroundings.scheduler,
            origin_ms=self._random.randrange(10**6),
            drift_ppm=self._random.randrange(-drift_max, drift_max + 1),
        )

    def look_whole(self) -> None:
        """Replicas that run, and don't call themselves forgetful, are whole again."""
        impaired = self._around.roster.impaired
        for group, handle in self.handles.items():
            if (group, handle.replica) in impaired and handle.core is not None:
                status = handle.core.status()
                if not status.forgetful and not status.removed:
                    del impaired[group, handle.replica]
                    self._around.trace.add(self._name, f"replica {handle.replica} of group {group} is whole")

    def beyond_repair(self, group: GroupId) -> bool:
        """The replica that should be here does not run, and never will."""
        if self._runtime is None:
            return bool(self.damaged)
        if not self._around.roster.hosted(self.node, group):
            return False
        handle = self.handles.get(group)
        return handle is None or bool(handle.problem)

    @property
    def needs_an_empty_disk(self) -> bool:
        """Damage may have hit any replica, and keeps one from running."""
        return bool(self.damaged) and any(map(self.beyond_repair, self._around.roster.groups))

    def want_snapshots(self) -> None:
        for handle in self.handles.values():
            handle.want_snapshot()

    # --- events -----------------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        return self._runtime is not None

    @property
    def life(self) -> int:
        return self._life

    @property
    def paused(self) -> bool:
        """It runs, and does nothing."""
        return self._paused or self._stalled

    def later(self, delay_us: int, what: str, action: Callable[[], None]) -> None:
        """Run something on this process's main thread, in this life of it. `what` goes into the trace, unless it is
        empty."""
        life = self._life

        def fire() -> None:
            if self._life != life or self._runtime is None:
                return
            if self._paused or self._stalled:
                self._backlog.append((what, action))
                return
            if what:
                self._around.trace.add(self._name, what)
            self._guarded(action)
            if self._runtime is not None:
                self._owner.after_event(self)

        self._around.scheduler.after(delay_us, fire)

    def on_thread(self, delay_us: int, action: Callable[[], None]) -> None:
        """Run something on another thread of this process, in this life of it: no group changes by it."""
        life = self._life

        def fire() -> None:
            if self._life != life or self._runtime is None:
                return
            if self._paused:
                self._thread_backlog.append(action)
            else:
                self._guarded(action)

        self._around.scheduler.after(delay_us, fire)

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except PowerLost as lost:
            self.power_cut(str(lost))
        except StorageFailed as failure:
            self.kill(f"ends by itself: {failure}")

    # --- life and death ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the process on what the disk holds. It may fail to, as a real one may; then it stays down."""
        if self._runtime is not None:
            return
        self._around.trace.add(self._name, f"starts life {self._life}")
        self.filesystem.faults = FaultPlan(capacity_bytes=self.filesystem.faults.capacity_bytes)
        try:
            self._start()
        except PowerLost as lost:
            self.power_cut(str(lost))
        except StorageFull as full:
            self.kill(f"can't start: {full}")
        except StorageFailed as failure:
            if self._around.roster.impaired_on(self.node):
                self.damaged = str(failure)
            self.kill(f"can't start: {failure}")

    def _start(self) -> None:
        around, life = self._around, self._life
        identity = load_or_create(
            self.filesystem,
            DIRECTORY,
            CLUSTER,
            self.node,
            random_bytes=stream(around.seed, f"uuid {self.node}.{self.wipes}").randbytes,
        )
        wal, recovery = open_log(
            self.filesystem, DIRECTORY, identity.identity(), around.wal_options, replicated=around.replicated
        )
        self._owner.recovered(self, recovery)
        snapshots = SnapshotFiles(self.filesystem, f"{DIRECTORY}/snapshots", chunk_bytes=around.snapshot_chunk_bytes)
        around.trace.add(
            self._name,
            f"recovered incarnation {recovery.incarnation}, {recovery.discarded_tail_bytes} bytes of torn tail, "
            + "; ".join(
                f"g{number} {group.hard_state} {len(group.entries)} entries to "
                f"{group.entries[-1].index if group.entries else 0}{group.damage}"
                for number, group in sorted(recovery.groups.items())
            ),
        )
        profile = self._profile
        self.lanes = SimulatedLanes(around.scheduler, self._stream("lanes"), profile, self)
        transport = SimulatedTransport(around.network, self.node, around.speech.sent)
        writer = SimulatedLogWriter(
            wal,
            around.scheduler,
            self._stream("writer"),
            profile,
            self,
            lag_us=lambda: self.disk_lag_us,
            synced=self._synced,
            read_back=self._count_read_back,
            behind=Behind() if around.replicated else None,
        )
        runtime = NodeRuntime(
            node=self.node,
            recovery=recovery,
            writer=writer,
            snapshots=snapshots,
            lanes=self.lanes,
            transport=transport,
            clock=self.clock,
            random=self._raft_random,
            options=around.runtime_options,
        )
        writer.together = runtime.input
        self._runtime = runtime
        self.damaged = recovery.damage
        self.handles, self.machines = {}, {}
        for spec in around.groups:
            self._add_group(runtime, recovery, spec)
        self._owner.running(self)
        self.later(0, "", runtime.start)
        if transport.receiver is not None:
            around.network.started(self.node, transport.receiver)
        self._tick_later(life)

    def _synced(self, append: GroupAppend) -> None:
        if append.group in self.durable:
            self.durable[append.group].synced(append)

    def _count_read_back(self, entries: int) -> None:
        self.read_back += entries

    def _add_group(self, runtime: NodeRuntime, recovery: Recovery, spec: GroupSpec) -> None:
        """The replica that an order made here in an earlier life, or else the one of the bootstrap, unless that was
        deleted, or the disk it was on is gone."""
        around, found = self._around, recovery.groups.get(spec.group)
        made = found.create.replica if found is not None and found.create is not None else 0
        replica = made or spec.replica_on(self.node) or 0
        if not replica or (not made and (self.wipes or runtime.deleted(spec.group, replica))):
            return
        if not notices_damage(recovery, spec.group):
            around.speech.recovered(spec.group, replica, found)
        self.durable[spec.group] = DurableLog(found)
        machine, listener = self._machine(spec.group)
        self.handles[spec.group] = runtime.add_group(
            group=spec.group,
            replica=replica,
            configuration=spec.configuration,
            nodes=dict(spec.nodes),
            machine=machine,
            listener=listener,
        )

    def _machine(self, group: GroupId) -> tuple[WitnessedMachine, GroupListener]:
        inner, listener = self._owner.machine(self.node, group)
        machine = self.machines[group] = WitnessedMachine(inner, self._around.witnesses[group], self.node)
        return machine, listener

    # --- orders -----------------------------------------------------------------------------------------------------

    def create_replica(
        self, group: GroupId, replica: ReplicaId, configuration: Configuration, done: Callable[[CreateOutcome], None]
    ) -> None:
        """Called in an event of this process."""
        runtime = self._runtime
        if runtime is None:
            return

        def created(outcome: CreateOutcome) -> None:
            self._creating.discard(group)
            if isinstance(outcome, ReplicaCreated):
                self.handles[group] = runtime.groups[group]
            done(outcome)

        if group in runtime.groups or group in self._creating:
            done(Refused(0, 0, reason="a replica of that group is here, or being made"))
            return
        self._creating.add(group)
        self.durable[group] = DurableLog(None)
        self._around.roster.placed(group, replica, self.node)
        machine, listener = self._machine(group)
        runtime.create_replica(
            group=group,
            replica=replica,
            configuration=configuration,
            machine=machine,
            listener=listener,
            done=created,
        )

    def delete_replica(self, group: GroupId, replica: ReplicaId, done: Callable[[DeleteOutcome], None]) -> None:
        """Called in an event of this process."""
        if self._runtime is None:
            return

        def deleted(outcome: DeleteOutcome) -> None:
            if isinstance(outcome, ReplicaDeleted):
                self._around.roster.deleted(group, replica, self.node)
            done(outcome)

        if group in self.handles and self.handles[group].replica == replica:
            del self.handles[group]
        self._runtime.delete_replica(group, replica, deleted)

    # --- life and death, continued ----------------------------------------------------------------------------------

    def _stream(self, name: str) -> random.Random:
        return stream(self._around.seed, f"{name} {self.node}.{self._life}")

    def _raft_random(self, group: GroupId) -> Randomness:
        return self._stream(f"raft {group}")

    def _profile(self) -> Profile:
        return self._around.network.profile_of(self.node)

    def _tick_later(self, life: int) -> None:
        def tick() -> None:
            if self._runtime is not None and self._life == life:
                self._tick_later(life)
                self._runtime.tick()

        self.later(self._around.runtime_options.tick_ms * MS, "", tick)

    def kill(self, reason: str) -> None:
        """The process is gone; its peers' kernels may say so. What it wrote stays in the page cache."""
        self.filesystem.kill()
        self._gone(reason, silent=False)

    def power_cut(self, reason: str) -> None:
        """The machine is gone, and with it what was not synced. That may be something acknowledged when only a majority
        has to hold that written: then at most a minority of a group is hit before it is whole again, and where it would
        be more the process ends alone."""
        if self._around.replicated:
            if not self._around.roster.may_damage(self.node):
                self.kill(f"{reason} (its machine is spared)")
                return
            self._around.roster.impair(self.node, "its machine stopped")
        torn = self._random.random() < 0.7
        self.filesystem.crash(self._random, torn=torn)
        self._gone(f"{reason} (power cut{', torn' if torn else ''})", silent=True)

    def wipe(self, reason: str) -> None:
        """The machine is gone, and its disk with it: it comes back as a new one (RULES I2)."""
        self._around.roster.impair(self.node, reason)
        self.filesystem.kill()
        self._gone(reason, silent=True)
        self.wipes += 1
        self.damaged = ""
        self.filesystem = MemoryFileSystem()

    def _gone(self, reason: str, *, silent: bool) -> None:
        was_running = self._runtime is not None
        if was_running:
            self._owner.stopped(self, reason)
        self._runtime = None
        self._paused = self._stalled = False
        self._backlog.clear()
        self._thread_backlog.clear()
        self._life += 1
        self.handles, self.machines = {}, {}
        self._creating.clear()
        self._around.trace.add(self._name, f"is gone: {reason}")
        if was_running:
            self._around.network.gone(self.node, silent=silent)

    def heal(self) -> None:
        """Nothing is wrong any more with the disk, the machine or the process; it runs."""
        self.disk_lag_us = 0
        self.filesystem.faults = FaultPlan()
        self.clock.drift()
        self.resume()
        self.unstall()
        self.start()

    def pause(self) -> None:
        if self._runtime is not None:
            self._paused = True

    def resume(self) -> None:
        """What came meanwhile is waiting in sockets and timers."""
        if self._paused:
            self._paused = False
            backlog, self._thread_backlog = self._thread_backlog, []
            for action in backlog:
                self.on_thread(0, action)
            self._go_on()

    def stall(self) -> None:
        """The main thread hangs in something; the others go on."""
        if self._runtime is not None:
            self._stalled = True

    def unstall(self) -> None:
        if self._stalled:
            self._stalled = False
            self._go_on()

    def _go_on(self) -> None:
        if not (self._paused or self._stalled):
            backlog, self._backlog = self._backlog, []
            for what, action in backlog:
                self.later(0, what, action)


def notices_damage(recovery: Recovery, group: GroupId) -> bool:
    """Whether the replica says itself that it may have forgotten something (RULES W7)."""
    found = recovery.groups.get(group)
    return bool(recovery.damage or (found is not None and (found.damage or found.forgetful or found.hard_state_lost)))
