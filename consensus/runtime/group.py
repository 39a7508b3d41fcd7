"""One replica of one group on this node: its core, driven.

Owns the way of a command: taken or refused, in a `Ready` whose parts go to the writer, the network and the state
machine's lane, each at once and beside the others, and the reports back; reads, which follow it; and what the owner is
told of leading. Everything else that happens in a group is given to its part: how it begins (`beginning`), whole states
(`keeping`), orders of owners (`orders`), who the members are (`members`), notes (`notes`), messages out (`outbox`).
Invariants: every proposal gets exactly one outcome; a batch of committed entries is one job on the lane; a replica that
does not run says why, while the other groups of its node go on. Must not know: what payloads mean, threads, sockets,
snapshots' files.

The core is only touched inside an input of the node (`Services.input`), which settles this group before it ends.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

from consensus.core.errors import Busy, NotLeader
from consensus.core.interface import (
    AppendRequest,
    AppendResponse,
    Configuration,
    Core,
    Entry,
    GroupId,
    HeartbeatResponse,
    MembershipChange,
    NodeId,
    Payload,
    Ready,
    ReplicaId,
    Role,
    SnapshotMeta,
    SnapshotOffer,
)
from consensus.runtime.backlog import Backlog
from consensus.runtime.beginning import Beginning
from consensus.runtime.disk import brings_commands
from consensus.runtime.homes import Homes
from consensus.runtime.inputs import PartInput
from consensus.runtime.interface import APPLY_LANE, Applied, GroupListener, OnConfiguration, Refused, StateMachine
from consensus.runtime.keeping import SnapshotKeeping
from consensus.runtime.loading import Loading
from consensus.runtime.machine import AppliedBatch, MachineHost
from consensus.runtime.members import Members
from consensus.runtime.notes import Notes
from consensus.runtime.orders import Orders
from consensus.runtime.outbox import Outbox
from consensus.runtime.proposals import Done, Proposals
from consensus.runtime.requests import MembershipDone, ReadDone, Reads, TransferDone
from consensus.runtime.services import Services
from consensus.runtime.status import GroupStatus
from consensus.storage.interface import GroupAppend, RecoveredGroup
from consensus.transport.interface import (
    Envelope,
    NodeHeartbeat,
    NodeHeartbeatAnswer,
    Report,
    SnapshotAnswer,
    SnapshotChunk,
    SnapshotRequest,
)

_log = logging.getLogger(__name__)


class GroupHandle:
    """Made by `NodeRuntime.add_group`."""

    def __init__(
        self,
        services: Services,
        *,
        group: GroupId,
        replica: ReplicaId,
        configuration: Configuration,
        nodes: Mapping[ReplicaId, NodeId],
        machine: StateMachine,
        listener: GroupListener,
        mark: Callable[[], None],
        make_core: Callable[[RecoveredGroup | None], Core],
        recovered: RecoveredGroup | None,
        problem: str,
        on_configuration: OnConfiguration | None = None,
    ) -> None:
        self.group = group
        self.replica = replica
        self._homes = Homes(nodes, configuration)
        self.problem = problem
        """Why this replica does not run; empty when all is well."""
        # An input of the node, for this replica: it gives False when either was stopped.
        part = PartInput(services.input(), lambda: self._stopped)
        self._services = replace(services, input=lambda: part)
        self._members = Members(configuration, self._homes, on_configuration)
        self._listener = listener
        self._mark = mark
        self._machine = MachineHost(
            group=group,
            machine=machine,
            configuration=configuration,
            node=services.node,
            incarnation=services.incarnation,
            load=lambda entries: services.writer.load(group, entries),
            budget_bytes=services.options.snapshot_budget_bytes,
        )
        self._beginning = Beginning(
            self._services,
            group=group,
            machine=self._machine,
            make_core=make_core,
            recovered=recovered,
            restored=self._restored,
            run=self._run,
            cannot_run=self._cannot_run,
        )
        self._core: Core | None = None
        self._snapshots: SnapshotKeeping | None = None
        """There as soon as the core is."""
        self._disk_stalled = False
        self._proposals = Proposals()
        self._reads = Reads()
        self._orders = Orders(replica, listener, services.options)
        self._send = Outbox(self._services, group=group, homes=self._homes, listener=listener).send
        self._appends = Loading(self._services, group=group, send=self._send)
        self._notes = Notes(self._services, replica=replica, listener=listener, send=self._send)
        self._backlog = Backlog()
        self._stopped: bool = False
        self._leads_term = 0
        """The term this replica leads in, as the listener knows it; 0 when it does not."""
        self._served_term = 0
        self._leader: tuple[ReplicaId, int] = (0, 0)
        self.asleep: tuple[bool, ReplicaId, int, int] | None = None
        """(leads, leader, term, commit index) of a group that sleeps (RULES C5); None when it is awake."""
        self._outlook: tuple[object, ...] = ()
        """What the owner was told of, as the core sums it up."""
        self._heard = False
        """A message came since the node noticed a stall."""

    # --- what its owner calls ---------------------------------------------------------------------------------------

    def propose(self, payload: Payload, crc: int, done: Done) -> None:
        """Have a command applied. `done` gets exactly one `Outcome`, on the host's thread; a refusal comes before this
        returns. `crc` is the CRC32C of `payload`, which must not change any more."""
        with self._services.input() as running:
            core = self._core
            if core is None or not running:
                done(Refused(0, 0))
                return
            size = payload.nbytes if isinstance(payload, memoryview) else len(payload)
            if size > self._services.options.proposal_bytes_max:
                self._services.dropped["proposal_too_long"] += 1
                done(Refused(0, core.status().term))
                return
            if len(self._proposals) >= self._services.options.proposals_max or self._applies_too_much():
                done(Refused(self.replica, core.status().term, busy=True))
                return
            if self._services.writer.full():
                done(self._refused_full(core))
                return
            if self.distrusted:
                done(self._refused_distrusted(core))
                return
            try:
                term, index = core.propose(payload, crc)
            except NotLeader as error:
                done(Refused(error.leader, error.term))
                return
            except Busy as error:
                done(Refused(self.replica, core.status().term, busy=True, reason=str(error)))
                return
            self._proposals.add(term, index, done)
            self._mark()

    def want_snapshot(self) -> None:
        """Write a snapshot as soon as the node has time for it, however short the log is."""
        with self._services.input() as running:
            if running and self._snapshots is not None:
                self._snapshots.want()

    def _refused_distrusted(self, core: Core) -> Refused:
        """What it would apply waits for another state."""
        status = core.status()
        leader = 0 if status.leader == self.replica else status.leader
        return Refused(leader, status.term, reason=self._not_to_be_trusted())

    def _applies_too_much(self) -> bool:
        return self._backlog.bytes > self._services.options.applying_bytes_max

    def _refused_full(self, core: Core) -> Refused:
        """Before the core or the disk is touched; who does not lead says who does instead (RULES W5)."""
        status = core.status()
        if status.role is not Role.LEADER:
            return Refused(status.leader, status.term)
        return Refused(self.replica, status.term, full=True, reason="the disk is full")

    def propose_membership(self, change: MembershipChange, done: MembershipDone) -> None:
        """Make the group's members what `change` says. `done` gets exactly one outcome: `Committed` (without a result)
        when the final configuration is committed and applied here, `Refused` with the reason (`busy`: the same change
        may be possible later), `Unknown` when leadership ended meanwhile. Asking again does no harm."""
        with self._services.input() as running:
            core = self._core
            if core is None or not running:
                done(Refused(0, 0, reason=self.problem or "this replica does not run"))
                return
            if self._orders.change(core, change, done):
                self._mark()

    def read_index(self, done: ReadDone) -> None:
        """Have `done` called once state applied here may answer a linearizable read (RULES R2): exactly once, with
        `ReadIndex`, or `Refused` when nobody can say now. At the leader and at any other replica."""
        with self._services.input() as running:
            core = self._core
            if core is None or not running:
                done(Refused(0, 0, reason=self.problem or "this replica does not run"))
                return
            if self.distrusted:
                done(self._refused_distrusted(core))
                return
            if len(self._reads) >= self._services.options.reads_max:
                status = core.status()
                done(Refused(status.leader, status.term, busy=True, reason="too many reads wait"))
                return
            token = self._reads.add(done)
            try:
                core.read(token)
            except NotLeader as error:
                self._reads.refuse(token, Refused(error.leader, error.term, reason=str(error)))
                return
            self._mark()

    def transfer(self, replica: ReplicaId, done: TransferDone) -> None:
        """Hand leadership to that replica. `done` gets exactly one outcome, at the latest after `transfer_ms`:
        `Transferred`, or `Refused` with the reason."""
        with self._services.input() as running:
            core = self._core
            if core is None or not running:
                done(Refused(0, 0, reason=self.problem or "this replica does not run"))
                return
            if self._orders.transfer(core, replica, done):
                self._mark()

    def leader(self) -> tuple[ReplicaId, NodeId, int]:
        """(replica, node, term) of the leader as this replica knows it; 0 where it does not."""
        if self._core is None:
            return 0, 0, 0
        status = self._core.status()
        leader = self.replica if status.role is Role.LEADER else status.leader
        return leader, self._homes.node_of(leader), status.term

    @property
    def nodes(self) -> Mapping[ReplicaId, NodeId]:
        """Where each member lives, as far as it is known; some members of the past are among them."""
        return self._homes.known

    @property
    def prefers(self) -> ReplicaId:
        """The replica that should lead instead of this one, which does (RULES C6); 0 when this one should, or does not
        lead. Costs nothing, so that it can be asked often."""
        if not self._leads_term:
            return 0
        preferred = self._members.preferred(self.replica, self._services.avoided)
        return 0 if preferred == self.replica else preferred

    @property
    def ready_to_serve(self) -> bool:
        """It leads and its no-op of this term is applied (RULES S2)."""
        return self._core is not None and self._core.status().ready_to_serve

    @property
    def voters(self) -> tuple[ReplicaId, ...]:
        """Of the configuration in force here."""
        return self._members.configuration.voters

    def report(self, replica: ReplicaId, content: bytes) -> None:
        """Tell another replica's state machine something (at most `note_bytes_max`); it may be lost. It goes between a
        leader and its followers only, and is heard only in this term."""
        with self._services.input() as running:
            core = self._core
            if core is not None and running:
                self._notes.report(core, replica, content)

    def hold_snapshots(self, *, held: bool) -> None:
        """While states differ and nobody knows who is right, this one is sent to no follower that is merely behind: its
        copy would count as a second opinion (RULES D1). Whoever is, is left the log to have one of his own."""
        with self._services.input() as running:
            if running and self._snapshots is not None:
                self._snapshots.hold(held=held)
                self._mark()

    def distrust(self, reason: str) -> None:
        """This replica's state was found wrong (RULES D1): from now on it neither leads nor serves, still votes and
        appends, and is rebuilt from its leader's snapshot; `GroupListener.restored` says when."""
        with self._services.input() as running:
            if self._snapshots is not None and running and not self.distrusted:
                self._snapshots.distrust(reason)
                self._proposals.forget()
                self._reads.stop(Refused(0, 0, reason=self._not_to_be_trusted()))
                self._mark()

    def _not_to_be_trusted(self) -> str:
        return f"this replica is being rebuilt: {self.distrusted}"

    @property
    def distrusted(self) -> str:
        """Why this replica's state is not to be trusted; empty when it is."""
        return self._snapshots.rebuilding.reason if self._snapshots is not None else ""

    def status(self) -> GroupStatus:
        return GroupStatus(
            core=self._core.status() if self._core is not None else None,
            problem=self.problem,
            distrusted=self.distrusted,
            configuration=self._members.configuration,
            dropped=dict(getattr(self._core, "dropped", {})),
            snapshots_written=self._snapshots.writing.written if self._snapshots is not None else 0,
            snapshots_sent=self._snapshots.sending.started if self._snapshots is not None else 0,
        )

    @property
    def core(self) -> Core | None:
        """For checks that look at all replicas from outside; nobody else drives it."""
        return self._core

    # --- beginning and end ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Restore the newest snapshot, then run. Called inside an input."""
        if not self.problem:
            self._beginning.begin()

    def _was_removed(self) -> None:
        """It was told so on the ground of a committed configuration (RULES I1): it does nothing any more."""
        self.problem = f"replica {self.replica} is no member of group {self.group} any more; delete it from this node"
        _log.warning("%s", self.problem)
        self._end_requests(self.problem)

    def _cannot_run(self, problem: str) -> None:
        self.problem = problem
        _log.error("group %d does not run here: %s", self.group, problem)

    def _run(self, core: Core, snapshot: SnapshotMeta | None) -> SnapshotKeeping:
        self._core = core
        snapshots = self._snapshots = SnapshotKeeping(
            self._services,
            group=self.group,
            replica=self.replica,
            core=core,
            machine=self._machine,
            backlog=self._backlog,
            newest=snapshot,
            configuration=lambda: self._members.configuration,
            send=self._send,
            fit=self._tell_fit,
            restored=self._restored,
            resume=self._apply,
            changed=self._mark,
        )
        self._tell_fit()
        return snapshots

    def stop(self) -> None:
        """No more inputs will come. Who asks again when told so is refused at once."""
        self._stopped = True
        if self._leads_term:
            self._depose()
        self._end_requests("this replica stops")
        if self._snapshots is not None:
            self._snapshots.stop()

    def _end_requests(self, reason: str) -> None:
        """What waits gets its outcome."""
        leader, term = self._leader
        self._reads.stop(Refused(leader, term, reason=reason))
        self._orders.stop(term)

    # --- inputs from the node ---------------------------------------------------------------------------------------

    def received(self, node: NodeId, envelope: Envelope) -> None:
        core, snapshots, message = self._core, self._snapshots, envelope.message
        if core is None or snapshots is None:
            self._services.dropped["group_not_running"] += 1
            return
        if not self._homes.heard(message.sender, node):
            self._services.dropped["replica_not_on_node"] += 1
            return
        self._heard = True
        if isinstance(message, SnapshotChunk):
            snapshots.chunk(message)
        elif isinstance(message, SnapshotAnswer):
            snapshots.answered(message)
        elif isinstance(message, SnapshotOffer | NodeHeartbeat | NodeHeartbeatAnswer):
            # An offer is the host's own to make; the others are of no group.
            self._services.dropped["not_for_a_group"] += 1
        elif isinstance(message, SnapshotRequest):
            snapshots.asked(message)
        elif isinstance(message, Report):
            self._notes.reported(core, message)
        elif self._services.writer.exhausted() and brings_commands(message):
            self._services.dropped["disk_full"] += 1
        elif self._applies_too_much() and brings_commands(message):
            self._services.dropped["applying_too_much"] += 1
        else:
            core.step(message)
            if envelope.note and isinstance(message, AppendResponse | HeartbeatResponse):
                self._notes.noted(core, message, envelope.note)
        self._mark()

    def connection(self, node: NodeId, *, closed: bool) -> None:
        for replica in self._homes.replicas_on(node):
            if self._core is not None and replica != self.replica:
                self._core.connection(replica, closed=closed)
                if self._snapshots is not None:
                    self._snapshots.sending.connection(replica, closed=closed)
        self._mark()

    def tick(self, elapsed_ms: int, now_ms: int, *, beat: bool) -> None:
        if self._core is None or self._snapshots is None:
            return
        self._core.tick(elapsed_ms, beat=beat)
        self._orders.tick(elapsed_ms)
        self._snapshots.tick(now_ms)
        self._mark()

    def storage(self, *, stalled: bool) -> None:
        """The node's disk makes no progress, or does again (HAZARDS 16)."""
        self._disk_stalled = stalled
        self._tell_fit()

    @property
    def needs_ticks(self) -> bool:
        """Something here waits for time to pass."""
        if self.asleep is None or self._orders.transfers:
            return True
        return self._snapshots is not None and self._snapshots.active

    @property
    def elsewhere(self) -> dict[ReplicaId, NodeId]:
        """The other members, and where they live."""
        return self._members.without(self.replica)

    def wake(self) -> None:
        """Something happened that a group must not sleep through."""
        if self._core is not None:
            self._core.wake()
            self._mark()

    def stalled(self) -> None:
        """From now on note whether anything is heard."""
        self._heard = False

    @property
    def heard(self) -> bool:
        return self._heard

    # --- carrying out -----------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Do all that the core asks for."""
        core, snapshots = self._core, self._snapshots
        if core is None or snapshots is None:
            return
        self._observe(core)
        while core.has_ready():
            self._carry_out(core, snapshots, core.ready())
            self._observe(core)

    def _observe(self, core: Core) -> None:
        """Tell the owner who leads, when that changed."""
        outlook = core.outlook()
        if outlook == self._outlook and not self._orders.memberships and not self._orders.transfers:
            return
        self._outlook = outlook
        status = core.status()
        leads = status.role is Role.LEADER
        self.asleep = (leads, status.leader, status.term, status.commit_index) if status.quiesced else None
        if self._leads_term and (not leads or status.term != self._leads_term):
            self._depose()
        if leads:
            self._leads_term = status.term
        leader = (self.replica if leads else status.leader, status.term)
        if leader != self._leader:
            self._leader = leader
            self._listener.leader_changed(*leader)
        self._members.follow(status)
        self._orders.settle(core, status)
        if status.removed and not self.problem:
            self._was_removed()
        if status.ready_to_serve and self._served_term != status.term:
            self._served_term = status.term
            self._listener.leading(status.term)

    def _depose(self) -> None:
        term, self._leads_term = self._leads_term, 0
        if self._snapshots is not None:
            self._snapshots.sending.stop()
        self._listener.deposed(term)
        self._proposals.forget()

    def _carry_out(self, core: Core, snapshots: SnapshotKeeping, ready: Ready) -> None:
        if ready.persist_number:
            self._persist(core, snapshots, ready)
        for message in ready.messages:
            if isinstance(message, AppendRequest):
                self._appends.send(message)
            else:
                self._send(message)
        if ready.committed:
            self._apply(ready.committed)
            snapshots.rebuilding.handed_out(ready.committed[-1].index)
        if ready.reads:
            status = core.status()
            refused = Refused(status.leader, status.term, reason="no leader confirms it now; ask again")
            for result in ready.reads:
                self._reads.answered(result, applied_index=status.applied_index, refused=refused)
        for replica in ready.send_snapshot:
            snapshots.sending.start(replica)

    def _persist(self, core: Core, snapshots: SnapshotKeeping, ready: Ready) -> None:
        append = GroupAppend(
            group=self.group,
            clear_forgetful=ready.clear_forgetful,
            install=ready.install,
            hard_state=ready.hard_state,
            entries=ready.entries,
        )
        if ready.install is not None:
            snapshots.install()

        def durable() -> None:
            with self._services.input() as running:
                if running:
                    core.persisted(ready.persist_number)
                    if ready.install is not None:
                        snapshots.load(ready.install)
                    self._mark()

        self._services.writer.submit(append, durable)

    # --- applying ---------------------------------------------------------------------------------------------------

    def _tell_fit(self) -> None:
        """A replica with a wrong state, like one whose disk stands still, hands over and does not campaign."""
        if self._core is not None:
            self._core.storage(stalled=self._disk_stalled or bool(self.distrusted))
            self._mark()

    def _apply(self, entries: tuple[Entry, ...] = ()) -> None:
        """In one job on the lane; with none, go on with what had to wait."""
        self._backlog.add(entries)
        self._services.run(APPLY_LANE, lambda: self._machine.apply(entries), self._applied)

    def _applied(self, batch: AppliedBatch) -> None:
        core, snapshots = self._core, self._snapshots
        if core is None or snapshots is None:
            return
        if batch.sizes:
            core.applied(batch.index)
            self._backlog.reached(batch.index)
        results: tuple[Applied, ...] = batch.results
        if results:
            self._listener.applied(results)
            self._proposals.applied(results)
        self._reads.applied(batch.index)
        snapshots.writing.applied(batch)
        self._mark()

    def _restored(self, index: int) -> None:
        """The state machine holds another state, the one at that index."""
        self._listener.restored(index)
        self._reads.applied(index)
