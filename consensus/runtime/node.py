"""All groups of a node: what comes in, what goes out, and time.

Owns the boundary of an input: whatever happens inside one (a message, a tick, a report of the disk, a proposal), the
groups it touched are settled before it ends, and everything they send leaves together, one call a node and channel.
Invariants: no callback runs outside an input; an exception inside one is a bug and goes to `fatal`; time that a stall
swallowed counts only after what waited meanwhile was looked at, and at most one election timeout of it (RULES C1).
Must not know: asyncio, threads, sockets, disks, what payloads mean.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from consensus.core.configuration import members_of, next_replica_of, problem_of
from consensus.core.interface import Configuration, Core, GroupId, HardState, NodeId, Randomness, ReplicaId
from consensus.core.raft import RaftCore
from consensus.runtime.disk import nameless, why_not
from consensus.runtime.group import GroupHandle
from consensus.runtime.heartbeats import Heartbeats
from consensus.runtime.homes import BOOTSTRAP_REPLICAS_MAX
from consensus.runtime.inputs import Input
from consensus.runtime.interface import (
    APPLY_LANE,
    Clock,
    CreateOutcome,
    DeleteOutcome,
    GroupListener,
    Lanes,
    LogWriter,
    OnConfiguration,
    Refused,
    ReplicaCreated,
    ReplicaDeleted,
    StateMachine,
)
from consensus.runtime.options import RuntimeOptions
from consensus.runtime.preference import Preference
from consensus.runtime.progress import WatchedWriter
from consensus.runtime.services import FILES_LANE, Services, Slots
from consensus.storage.interface import Creation, GroupAppend, RecoveredGroup, Recovery, SnapshotStore
from consensus.transport.interface import (
    AsleepRow,
    Channel,
    Envelope,
    NodeHeartbeat,
    NodeHeartbeatAnswer,
    Transport,
)


class NodeRuntime:
    """A `Receiver` for its transport. Everything is called on one thread, the host's."""

    def __init__(
        self,
        *,
        node: NodeId,
        recovery: Recovery,
        writer: LogWriter,
        snapshots: SnapshotStore,
        lanes: Lanes,
        transport: Transport,
        clock: Clock,
        random: Callable[[GroupId], Randomness],
        options: RuntimeOptions | None = None,
        fatal: Callable[[BaseException], None] | None = None,
    ) -> None:
        """`fatal` is told of an exception inside an input (a broken invariant, or a bug of a listener) before it goes
        on upwards: event loops swallow exceptions of callbacks, so it should end the process. Raises `ValueError` for
        options that can't be."""
        options = options or RuntimeOptions()
        problems = options.validate()
        if problems:
            raise ValueError("; ".join(problems))
        self.node = node
        self.incarnation = recovery.incarnation
        self.dropped: Counter[str] = Counter()
        """What was dropped on this node above the transport, by reason."""
        self.stalls = 0
        """Gaps between two ticks above `stall_ms`."""
        self._recovered = dict(recovery.groups)
        """What recovery found and no replica has taken over yet."""
        self._damage = recovery.damage
        self._tombstones = set(recovery.tombstones)
        self._creating: dict[GroupId, tuple[ReplicaId, Callable[[CreateOutcome], None]]] = {}
        """Whose creation is not durable yet, and who waits for it."""
        self._deleting: dict[tuple[GroupId, ReplicaId], list[Callable[[DeleteOutcome], None]]] = {}
        self._writer = WatchedWriter(writer)
        self._transport = transport
        self._clock = clock
        self._random = random
        self._options = options
        self._groups: dict[GroupId, GroupHandle] = {}
        self._awake: dict[GroupId, GroupHandle] = {}
        """Those that time passes for."""
        self._sleeping: dict[GroupId, tuple[tuple[bool, ReplicaId, int, int], tuple[NodeId, ...]]] = {}
        """Groups asleep as the heartbeats know them: how, and which nodes they concern."""
        self.heartbeats = Heartbeats(
            incarnation=recovery.incarnation,
            beat_ms=options.raft.heartbeat_ms,
            asleep_beat_ms=options.asleep_heartbeat_ms,
            silence_ms=options.raft.election_timeout_ms,
            wake=self._wake,
        )
        self._dirty: dict[GroupId, GroupHandle] = {}
        self._outbox: dict[tuple[NodeId, Channel], list[Envelope]] = {}
        self._inputs = Input(running=lambda: self._running, settle=self._settle, fatal=fatal)
        self._running = False
        self._stopped = False
        self._ticked_ms = clock.now_ms()
        self._owed_ms = 0
        self._services = Services(
            node=node,
            incarnation=recovery.incarnation,
            options=options,
            clock=clock,
            writer=self._writer,
            store=snapshots,
            lanes=lanes,
            send=self._queue,
            input=self.input,
            dropped=self.dropped,
            log_busy=lambda: self._writer.busy,
            writing=Slots(1),
            sending=Slots(options.transfers_max),
        )
        self._preference = Preference(lambda: self._groups.values(), prefer_after_ms=options.prefer_after_ms)
        transport.bind(self)

    def avoid(self, nodes: Iterable[NodeId]) -> None:
        """From now on these are to lead nothing: leaders are not handed to them, and one of them that comes to lead
        hands over to the first voter elsewhere (RULES C6). They vote and count as before."""
        self._services.avoided.clear()
        self._services.avoided.update(nodes)

    # --- groups -----------------------------------------------------------------------------------------------------

    @property
    def groups(self) -> Mapping[GroupId, GroupHandle]:
        return self._groups

    @property
    def creations(self) -> Mapping[GroupId, Creation]:
        """Replicas that orders made on this node in an earlier life, as recovery found them, and that were not added in
        this one yet: their owner adds them, as it adds those of the bootstrap."""
        return {group: found.create for group, found in self._recovered.items() if found.create is not None}

    def deleted(self, group: GroupId, replica: ReplicaId) -> bool:
        """A tombstone says that this replica was deleted here: it never comes back (RULES I1)."""
        return (group, replica) in self._tombstones

    def add_group(
        self,
        *,
        group: GroupId,
        replica: ReplicaId,
        configuration: Configuration,
        nodes: Mapping[ReplicaId, NodeId],
        machine: StateMachine,
        listener: GroupListener,
        on_configuration: OnConfiguration | None = None,
    ) -> GroupHandle:
        """A replica of this node. It runs from `start` on (at once when that was called), after the newest snapshot
        is restored; entries that recovery found are applied again as soon as they are known committed. `nodes` says
        where members live whose home the configuration does not name. A replica that was made by an order in an earlier
        life goes on under the id, and from the configuration, that its creation recorded, whatever is given here.
        Raises `ValueError` for a group that is there already, a replica that was deleted here, members without a
        node."""
        found = self._recovered.get(group)
        if found is not None and found.create is not None:
            replica, configuration = found.create.replica, found.create.configuration
        problem = self._problem_of(group, replica, configuration, nodes)
        if problem:
            raise ValueError(f"group {group}, replica {replica}: {problem}")
        self._recovered.pop(group, None)
        configuration = replace(configuration, next_replica=next_replica_of(configuration))
        handle = GroupHandle(
            self._services,
            group=group,
            replica=replica,
            configuration=configuration,
            nodes={replica: self.node, **nodes},
            machine=machine,
            listener=listener,
            mark=lambda: self._mark(group),
            make_core=lambda recovered: self._make_core(group, replica, configuration, recovered),
            recovered=found,
            problem=why_not(found, damage=self._damage),
            on_configuration=on_configuration,
        )
        self._groups[group] = self._awake[group] = handle
        handle.storage(stalled=self._writer.stalled)
        if self._running:
            with self.input():
                handle.start()
        return handle

    def _problem_of(
        self, group: GroupId, replica: ReplicaId, configuration: Configuration, nodes: Mapping[ReplicaId, NodeId]
    ) -> str:
        """Why that replica can't be here, or an empty string."""
        problem = problem_of(configuration)
        if problem:
            return problem
        if group in self._groups or group in self._creating:
            return "the group is there already"
        if (group, replica) in self._tombstones:
            return "it was deleted from this node, and never comes back"
        homes = {**nodes, **{home.replica: home.node for home in configuration.homes}}
        if homes.get(replica, self.node) != self.node:
            return f"it lives on node {homes[replica]}, not on node {self.node}"
        members = members_of(configuration)
        homeless = sorted(member for member in members if member not in homes and member >= BOOTSTRAP_REPLICAS_MAX)
        return f"no node is known for replicas {homeless}" if homeless else ""

    def create_replica(
        self,
        *,
        group: GroupId,
        replica: ReplicaId,
        configuration: Configuration,
        machine: StateMachine,
        listener: GroupListener,
        done: Callable[[CreateOutcome], None],
        on_configuration: OnConfiguration | None = None,
    ) -> None:
        """Make a replica, by an order of group 0, never by a message (RULES I1): its creation becomes durable first,
        then it runs, with an empty log, from `configuration`. `done` gets exactly one outcome; a refusal comes before
        this returns. Homes that `configuration` does not name are those of the bootstrap: the node of the replica's
        number."""
        with self.input() as running:
            problem = self._problem_of(group, replica, configuration, {})
            if not problem and group in self._recovered:
                problem = "the log holds a replica of this group; add it, or delete it first"
            if not problem and replica in configuration.voters:
                problem = "a new replica holds nothing, so it can't begin as a voter"
            if self._damage:
                problem = self._damage
            if problem or not running:
                done(Refused(0, 0, reason=problem or "this node does not run"))
                return
            if any(deleted == group for deleted, _ in self._deleting):
                # Files are removed by their group: those of the new one would go with them.
                done(Refused(0, 0, busy=True, reason="a replica of the group is being deleted"))
                return
            self._creating[group] = (replica, done)

            def durable() -> None:
                with self.input() as running:
                    if not running:
                        return  # it was answered when the node stopped
                    del self._creating[group]
                    self.add_group(
                        group=group,
                        replica=replica,
                        configuration=configuration,
                        nodes={},
                        machine=machine,
                        listener=listener,
                        on_configuration=on_configuration,
                    )
                    done(ReplicaCreated(group, replica))

            self._writer.submit(GroupAppend(group=group, create=Creation(replica, configuration)), durable)

    def delete_replica(self, group: GroupId, replica: ReplicaId, done: Callable[[DeleteOutcome], None]) -> None:
        """Stop that replica and leave a durable tombstone; its log is released and its files are removed (RULES I1).
        One that is not here is entombed all the same, beside another one of its group that is; doing it again does no
        harm. `done` gets exactly one outcome."""
        with self.input() as running:
            if not running:
                done(Refused(0, 0, reason="this node does not run"))
            elif (group, replica) in self._deleting:
                self._deleting[group, replica].append(done)
            elif (group, replica) in self._tombstones:
                done(ReplicaDeleted(group, replica))
            elif group in self._creating and self._creating[group][0] == replica:
                done(Refused(0, 0, busy=True, reason=f"replica {replica} is being made"))
            elif self._replica_here(group) in (None, replica):
                self._delete(group, replica, done)
            else:
                self._entomb(group, replica, done)

    def _replica_here(self, group: GroupId) -> ReplicaId | None:
        """Whose log is here: one that runs, is being made, or was found and is not taken over yet (replicas of the
        bootstrap carry their node's id). None where there is none, or its damage hides whose it is."""
        if group in self._groups:
            return self._groups[group].replica
        if group in self._creating:
            return self._creating[group][0]
        found = self._recovered.get(group)
        if found is None or nameless(found):
            return None
        return found.create.replica if found.create is not None else self.node

    def _delete(self, group: GroupId, replica: ReplicaId, done: Callable[[DeleteOutcome], None]) -> None:
        lane = FILES_LANE
        handle = self._groups.get(group)
        if handle is not None:
            handle.stop()
            lane = APPLY_LANE
            del self._groups[group]
            self._dirty.pop(group, None)
            self._awake.pop(group, None)
            self._woke(group)
        found = self._recovered.pop(group, None)
        if found is not None and nameless(found) and replica != self.node:
            # It may have been the bootstrap's, which must not begin again with no log: it could vote twice (RULES I1).
            self._tombstones.add((group, self.node))
            self._writer.submit(GroupAppend(group=group, tombstone=self.node), lambda: None)
        self._entomb(group, replica, done, lane)

    def _entomb(
        self, group: GroupId, replica: ReplicaId, done: Callable[[DeleteOutcome], None], lane: str = ""
    ) -> None:
        """`lane`: where the group's work is done, if files of the replica are here."""
        run, store = self._services.run, self._services.store
        self._tombstones.add((group, replica))
        self._deleting[group, replica] = [done]

        def buried() -> None:
            for waiting in self._deleting.pop((group, replica)):
                waiting(ReplicaDeleted(group, replica))

        def durable() -> None:
            with self.input() as running:
                if running and lane:
                    # What its lane still does for it comes first.
                    run(lane, lambda: None, remove_files)
                elif running:
                    buried()

        def remove_files(_: object) -> None:
            run(FILES_LANE, lambda: store.delete_all(group), lambda _: buried())

        self._writer.submit(GroupAppend(group=group, tombstone=replica), durable)

    def _make_core(
        self, group: GroupId, replica: ReplicaId, configuration: Configuration, recovered: RecoveredGroup | None
    ) -> Core:
        return RaftCore(
            group=group,
            replica=replica,
            configuration=configuration,
            hard_state=recovered.hard_state if recovered is not None else HardState(),
            entries=recovered.entries if recovered is not None else (),
            snapshot=recovered.snapshot if recovered is not None else None,
            incarnation=self.incarnation,
            config=self._options.raft,
            random=self._random(group),
            forgetful=recovered is not None and recovered.forgetful,
        )

    # --- life -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Take part. For a node of a new folder only after all members hold its uuid (RULES I2)."""
        with self.input():
            self._running = True
            self._ticked_ms = self._clock.now_ms()
            for handle in self._groups.values():
                handle.start()

    def stop(self) -> None:
        """Take no part any more: what waits for an outcome gets `Unknown`, what the disk or lanes still report is
        ignored. What was handed to the writer may still become durable, which is as good as being late."""
        if self._stopped:
            return
        with self.input():
            for handle in list(self._groups.values()):
                handle.stop()
            self._running = False
            self._stopped = True
            creating, self._creating = self._creating, {}
            for _, created in creating.values():
                created(Refused(0, 0, reason="this node stops; its creation may be found at the next start"))
            deleting, self._deleting = self._deleting, {}
            for waiting in deleting.values():
                for done in waiting:
                    done(Refused(0, 0, reason="this node stops; its tombstone may be found at the next start"))

    # --- inputs -----------------------------------------------------------------------------------------------------

    def input(self) -> Input:
        """Something from outside happens inside. May be nested; at the end of the outermost one everything that it
        caused is carried out. Owners that propose several commands at once wrap them in one, so that they travel
        together. Gives False when the node was stopped or not started: then nothing may be done."""
        return self._inputs

    def received(self, node: NodeId, envelopes: Sequence[Envelope]) -> None:
        with self.input() as running:
            if not running:
                self.dropped["not_running"] += len(envelopes)
                return
            for envelope in envelopes:
                message = envelope.message
                if isinstance(message, NodeHeartbeat | NodeHeartbeatAnswer):
                    self._pair_received(node, message)
                else:
                    self._group_received(node, envelope)

    def _group_received(self, node: NodeId, envelope: Envelope) -> None:
        handle = self._groups.get(envelope.group)
        if handle is None:
            # Replicas are made by orders, never by messages (RULES I1).
            self.dropped["unknown_group"] += 1
        else:
            handle.received(node, envelope)

    def _pair_received(self, node: NodeId, message: NodeHeartbeat | NodeHeartbeatAnswer) -> None:
        """What the other node says of all its groups. The rows come first: who they put to sleep sleeps when the rest
        is compared."""
        for row in message.rows:
            self._group_received(node, row)
        self._settle_groups()
        if isinstance(message, NodeHeartbeat):
            self.heartbeats.heard(node, message)
        else:
            self.heartbeats.answered(node, message)

    def connection(self, node: NodeId, *, closed: bool) -> None:
        with self.input() as running:
            if not running:
                return
            for handle in self._groups.values():
                handle.connection(node, closed=closed)

    def tick(self) -> None:
        """Time passed. The driver calls it every `tick_ms`, or as near to that as it can."""
        now_ms = self._clock.now_ms()
        elapsed_ms, self._ticked_ms = now_ms - self._ticked_ms, now_ms
        with self.input() as running:
            if running:
                self._pass(elapsed_ms, now_ms)

    def _pass(self, elapsed_ms: int, now_ms: int) -> None:
        timeout_ms = self._options.raft.election_timeout_ms
        if self._writer.tick(min(elapsed_ms, timeout_ms), stall_ms=self._options.storage_stall_ms):
            for handle in self._groups.values():
                handle.storage(stalled=self._writer.stalled)
        owed_ms, self._owed_ms = self._owed_ms, 0
        if elapsed_ms > self._options.stall_ms and not owed_ms:
            # The process slept. What came meanwhile still waits in its sockets: it is read before anybody campaigns.
            self.stalls += 1
            self._owed_ms = min(elapsed_ms, timeout_ms)
            for handle in self._groups.values():
                handle.stalled()
            self.heartbeats.stalled()
            return
        beat = self.heartbeats.tick(min(elapsed_ms, timeout_ms), owed_ms=owed_ms)
        for handle in list(self._awake.values()):
            owed = 0 if handle.heard else owed_ms
            handle.tick(min(elapsed_ms + owed, timeout_ms), now_ms, beat=beat)
        self._preference.tick(now_ms)

    # --- settling ---------------------------------------------------------------------------------------------------

    def _mark(self, group: GroupId) -> None:
        handle = self._groups.get(group)
        if handle is not None:
            self._dirty[group] = handle

    def _queue(self, node: NodeId, channel: Channel, envelope: Envelope) -> None:
        self._outbox.setdefault((node, channel), []).append(envelope)

    def _settle(self) -> None:
        self._settle_groups()
        while True:
            for node in self.heartbeats.due():
                self._outbox.setdefault((node, Channel.CONTROL), [])
            outbox, self._outbox = self._outbox, {}
            for (node, channel), envelopes in outbox.items():
                leaving = self.heartbeats.packed(node, envelopes) if channel is Channel.CONTROL else envelopes
                if leaving:
                    self._transport.send(node, channel, leaving)
            self.heartbeats.sent()
            if not self._dirty:
                return
            self._settle_groups()

    def _settle_groups(self) -> None:
        while self._dirty:
            group = next(iter(self._dirty))
            handle = self._dirty.pop(group)
            handle.settle()
            self._follow_sleep(group, handle)

    # --- groups that sleep ------------------------------------------------------------------------------------------

    def _wake(self, group: GroupId) -> None:
        handle = self._groups.get(group)
        if handle is not None:
            handle.wake()

    def _follow_sleep(self, group: GroupId, handle: GroupHandle) -> None:
        """Have the heartbeats watch for a group that sleeps, and time pass for one that does not."""
        if self._groups.get(group) is not handle:
            return
        if handle.needs_ticks:
            self._awake[group] = handle
        else:
            self._awake.pop(group, None)
        known, asleep = self._sleeping.get(group), handle.asleep
        if asleep is None:
            if known is not None:
                self._woke(group)
        elif known is None or known[0] != asleep:
            self._woke(group)
            self._slept(group, handle, asleep)

    def _slept(self, group: GroupId, handle: GroupHandle, asleep: tuple[bool, ReplicaId, int, int]) -> None:
        leads, leader, term, commit = asleep
        nodes = {replica: node for replica, node in handle.elsewhere.items() if node}
        for replica, node in nodes.items():
            if leads:
                self.heartbeats.sleeps(node, AsleepRow(group, leader, replica, term, commit), led=True)
            elif replica == leader:
                self.heartbeats.sleeps(node, AsleepRow(group, leader, handle.replica, term, commit), led=False)
        self._sleeping[group] = (asleep, tuple(nodes.values()))

    def _woke(self, group: GroupId) -> None:
        found = self._sleeping.pop(group, None)
        if found is not None:
            for node in found[1]:
                self.heartbeats.awake(node, group)
