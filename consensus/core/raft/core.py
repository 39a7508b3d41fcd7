"""One Raft replica of one group as a pure state machine.

Owns: the wiring of its concerns (election, replication, following, log, commit, durability), which message goes where,
and the `Ready` batch. Invariants: nothing here waits, reads a clock or draws a random number; the same inputs give the
same outputs. Must not know: disks, sockets, what payloads mean.
"""

from __future__ import annotations

from collections.abc import Sequence

from consensus.core.errors import InvariantViolated, MembershipRefused, NotLeader
from consensus.core.interface import (
    AnyMessage,
    AppendRequest,
    AppendResponse,
    CampaignNow,
    Configuration,
    Entry,
    EntryKind,
    GroupId,
    HardState,
    Heartbeat,
    HeartbeatResponse,
    MembershipChange,
    Message,
    Payload,
    Randomness,
    ReadRequest,
    ReadResponse,
    Ready,
    RejoinRequest,
    RejoinResponse,
    Removed,
    ReplicaId,
    Role,
    SnapshotMeta,
    SnapshotOffer,
    Status,
    VoteRequest,
    VoteResponse,
)
from consensus.core.raft.admission import FROM_REMOVED, refusal
from consensus.core.raft.commit import Commit
from consensus.core.raft.config import RaftConfig
from consensus.core.raft.durability import Durability
from consensus.core.raft.election import Election
from consensus.core.raft.following import Following
from consensus.core.raft.log import Log
from consensus.core.raft.membership import Membership
from consensus.core.raft.past import Lives, answer_to_earlier_term
from consensus.core.raft.quiescence import Quiescence
from consensus.core.raft.reads import Reads
from consensus.core.raft.reconfiguration import Reconfiguration
from consensus.core.raft.rejoin import Rejoin
from consensus.core.raft.replication import Replication
from consensus.core.raft.state import ReplicaState
from consensus.core.raft.transfer import Transfer, may_take_over


class RaftCore:
    """`consensus.core.interface.Core` by Raft. Drive it as that module's docstring says, from one thread."""

    def __init__(
        self,
        *,
        group: GroupId,
        replica: ReplicaId,
        configuration: Configuration,
        hard_state: HardState,
        entries: Sequence[Entry],
        snapshot: SnapshotMeta | None,
        incarnation: int,
        config: RaftConfig,
        random: Randomness,
        forgetful: bool = False,
    ) -> None:
        """What recovery found, all of it durable. The state machine is expected to hold `snapshot`, no more.
        `configuration` is what the replica began with; the snapshot's supersedes it, and those in `entries` both.
        `forgetful`: entries that were durable may be gone (RULES W7), but what is left is a beginning of the log as it
        was, and the hard state is whole.

        Raises `ValueError` for a configuration that can't be, `InvariantViolated` for a log that can't be: then
        something durable is gone, and this replica must not run."""
        problems = config.validate()
        if problems:
            raise ValueError("; ".join(problems))
        membership = Membership(replica, configuration)
        log = Log(entries, snapshot, membership)
        if log.last_term > hard_state.term:
            raise InvariantViolated(f"log ends in term {log.last_term}, the durable term is only {hard_state.term}")
        if hard_state.commit > log.last_index and not forgetful:
            raise InvariantViolated(f"{hard_state.commit} entries were committed, the log ends at {log.last_index}")
        self._log = log
        self._state = ReplicaState(
            group=group,
            me=replica,
            incarnation=incarnation,
            config=config,
            membership=membership,
            log=log,
            term=hard_state.term,
            vote=hard_state.vote,
            forgetful=forgetful,
        )
        # What a forgetful replica knew to be committed may be what it lacks: a leader will tell it again.
        self._commit = Commit(log, commit_index=0 if forgetful else hard_state.commit)
        self._durability = Durability(self._state, commit_index=self._commit.index)
        self._following = Following(self._state, self._durability, self._commit)
        self._rejoin = Rejoin(self._state, self._durability, self._following)
        self._replication = Replication(
            self._state, self._durability, self._commit, self._round_begins, lambda: self._reconfiguration.committed()
        )
        self._election = Election(
            self._state,
            self._durability,
            random,
            self._role_changed,
            lambda: self._quiescence.sure(),
            lambda: membership.may_lead(commit_index=self._commit.index),
        )
        disconnected = self._election.disconnected
        self._transfer = Transfer(self._state, self._durability, self._commit, self._replication, disconnected)
        self._reads = Reads(self._state, self._durability, self._commit, self._replication, self._transfer)
        self._quiescence = Quiescence(self._state, self._commit, self._replication, disconnected)
        self._reconfiguration = Reconfiguration(
            self._state, self._commit, self._durability, self._replication, self._retire
        )
        self._lives = Lives()
        self._notice_removal()

    # --- inputs -----------------------------------------------------------------------------------------------------

    def step(self, message: AnyMessage) -> None:
        state = self._state
        if state.removed:
            state.drop("removed")
            return
        reason = refusal(state, message, commit_index=self._commit.index)
        if reason:
            state.drop(reason)
            if reason == FROM_REMOVED and not isinstance(message, Removed):
                # No time passes while the group sleeps.
                self._reconfiguration.tell(message.sender, at_once=self._quiescence.asleep)
            return
        if isinstance(message, Removed):
            self._told_removed(message)
            return
        if self._quiescence.asleep and self._quiescence.wakes(message):
            self._wake()
        if not self._same_life(message) or not self._same_term(message):
            return
        match message:
            case AppendRequest() | Heartbeat() | SnapshotOffer() | CampaignNow():
                self._step_leader(message)
            case ReadRequest():
                self._reads.asked(message)
            case ReadResponse():
                self._reads.answered(message)
            case AppendResponse():
                self._replication.append_answer(message)
            case HeartbeatResponse():
                self._replication.heartbeat_answer(message)
            case RejoinRequest():
                self._rejoin.asked(message)
            case RejoinResponse():
                self._rejoin.told(message)
            case VoteRequest():
                if message.pre:
                    self._election.asked_pre_vote(message)
                else:
                    self._election.asked_vote(message)
            case VoteResponse():
                self._election.answered(message)
                if message.pre and not message.granted:
                    self._election.refused()

    def _same_life(self, message: Message) -> bool:
        """Follow the sender's incarnation; False for messages of an earlier life (RULES C4)."""
        known = self._lives.latest(message.sender)
        if message.incarnation < known:
            self._state.drop("earlier_incarnation")
            return False
        if message.incarnation > known:
            self._lives.remember(message.sender, message.incarnation, members=self._state.membership.members)
            if known:
                self._wake()
                self._replication.restarted(message.sender)
        return True

    def _same_term(self, message: AnyMessage) -> bool:
        """Follow a higher term, answer a lower one (Raft section 5.1). False when the message is done with.

        Pre-votes ask about a term that nobody is in yet: they change nothing, and are always answered."""
        state = self._state
        if isinstance(message, VoteRequest) and message.pre:
            return True
        if isinstance(message, VoteResponse) and message.pre and message.granted:
            return True
        if message.term < state.term:
            return self._earlier_term(message)
        if message.term > state.term:
            if isinstance(message, VoteRequest) and not message.transfer and self._election.protects_leader():
                state.drop("vote_against_live_leader")
                return False
            leads = isinstance(message, AppendRequest | Heartbeat | SnapshotOffer | CampaignNow)
            self._election.become_follower(message.term, message.sender if leads else 0)
        return True

    def _earlier_term(self, message: AnyMessage) -> bool:
        """Answered, or dropped, unless it is an answer that others judge: whether it is to be looked at."""
        match message:
            case AppendResponse() | HeartbeatResponse():
                return True  # Replication judges answers.
            case VoteResponse() if message.pre:
                return True  # A refusal; the refuser's term may well be lower.
        answer = answer_to_earlier_term(self._state, message)
        if answer is None:
            self._state.drop("earlier_term")
        else:
            self._durability.send_durable(answer)
        return False

    def _step_leader(self, message: AppendRequest | Heartbeat | SnapshotOffer | CampaignNow) -> None:
        state = self._state
        if state.role is Role.LEADER or state.leader not in (0, message.sender):
            # Election safety says that this can't be, so it is not followed; it does no harm.
            state.drop("second_leader")
            return
        self._election.heard_from(message.sender, lately=isinstance(message, Heartbeat | CampaignNow))
        match message:
            case AppendRequest():
                self._following.append(message)
            case Heartbeat():
                self._following.heartbeat(message)
                self._rejoin.heard()
                self._quiescence.told(message, verified=self._following.verified, busy=bool(len(self._reads)))
            case CampaignNow():
                if may_take_over(state, message, durable_match=self._following.durable_match()):
                    self._election.campaign_by_order()
            case SnapshotOffer():
                self._following.snapshot(message)
        self._notice_removal()

    # --- leaving the group ------------------------------------------------------------------------------------------

    def _told_removed(self, message: Removed) -> None:
        """Believed when it tells news, or what the own log says too. Its term is nothing to follow."""
        membership, commit_index = self._state.membership, self._commit.index
        if message.index > membership.committed(commit_index)[0] or membership.left(commit_index=commit_index):
            self._stop()
        else:
            self._state.drop("not_removed")

    def _notice_removal(self) -> None:
        """The own log may say so. A leader first finishes its work."""
        if self._state.role is not Role.LEADER and self._state.membership.left(commit_index=self._commit.index):
            self._stop()

    def _stop(self) -> None:
        self._state.removed = True
        self._election.become_follower(self._state.term, 0)

    def _retire(self) -> None:
        """The group goes on without this leader (dissertation section 4.2.2): another leads at once if it can, or as
        soon as it notices that nobody does."""
        if self._transfer.to_best():
            self._reads.stop()
        else:
            self._election.become_follower(self._state.term, 0)
            self._notice_removal()

    # --- time and proposals -----------------------------------------------------------------------------------------

    def tick(self, elapsed_ms: int, *, beat: bool | None = None) -> None:
        if self._quiescence.asleep or self._state.removed:
            return
        elapsed = max(0, min(elapsed_ms, self._state.config.election_timeout_ms))
        self._reads.tick(elapsed)
        self._reconfiguration.tick(elapsed)
        if self._state.role is Role.LEADER:
            self._tick_leader(elapsed, beat)
        else:
            self._election.tick(elapsed)
        self._unload()

    def _tick_leader(self, elapsed_ms: int, beat: bool | None) -> None:
        self._replication.tick(elapsed_ms, beat=beat)
        self._transfer.tick(elapsed_ms)
        gave_up = self._reconfiguration.retired() and not self._transfer.transferee
        if gave_up or self._replication.lost_quorum(elapsed_ms):
            self._election.become_follower(self._state.term, 0)
            self._notice_removal()
        else:
            self._leave_when_stalled()
        if self._state.role is not Role.LEADER:
            return
        self._quiescence.tick(elapsed_ms, busy=bool(self._transfer.transferee or len(self._reads)))

    def propose(self, payload: Payload, crc: int, kind: EntryKind = EntryKind.NORMAL) -> tuple[int, int]:
        """Also raises `ValueError` for a kind that is not a command: no-ops are the core's own, and configurations have
        `propose_membership`."""
        state = self._state
        if kind is not EntryKind.NORMAL:
            raise ValueError(f"entries of kind {kind.name} can't be proposed")
        if state.role is not Role.LEADER:
            raise NotLeader(state.leader, state.term)
        self._transfer.refuse_proposals()
        self._wake()
        return self._replication.propose(payload, crc)

    def propose_membership(self, change: MembershipChange) -> tuple[int, int]:
        if self._transfer.transferee:
            raise MembershipRefused(f"leadership is being handed to replica {self._transfer.transferee}", later=True)
        self._wake()
        return self._reconfiguration.propose(change)

    def read(self, token: int) -> None:
        self._wake()
        self._reads.ask(token)

    def transfer(self, to: ReplicaId) -> None:
        self._transfer.begin(to)
        self._wake()
        self._reads.stop()

    def transfer_problem(self, to: ReplicaId) -> str:
        return self._transfer.problem_of(to)

    def storage(self, *, stalled: bool) -> None:
        state = self._state
        if stalled == state.storage_stalled:
            return
        state.storage_stalled = stalled
        if not stalled:
            self._transfer.disk_recovered()
        self._wake()
        self._leave_when_stalled()

    def _leave_when_stalled(self) -> None:
        """A leader that cannot write must not hold up the group (HAZARDS 16)."""
        state = self._state
        if not state.storage_stalled or state.role is not Role.LEADER or self._transfer.transferee:
            return
        if not self._transfer.leave():
            self._election.become_follower(state.term, 0)
        elif self._transfer.transferee:
            self._reads.stop()

    def wake(self) -> None:
        self._wake()

    def _wake(self) -> None:
        """Whatever happens; asleep or not, the group was not idle."""
        if self._quiescence.stir() and self._state.role is not Role.LEADER:
            self._election.woken()

    def connection(self, replica: ReplicaId, *, closed: bool) -> None:
        state = self._state
        if replica == state.me:
            return
        # Of strangers too: one may lead, or become a member.
        if replica in self._replication.progress or (closed and replica == state.leader):
            self._wake()
        if closed:
            self._reads.disconnected(replica)
        self._election.connection(replica, closed=closed)
        if not closed:
            self._replication.connected(replica)

    # --- reports of the host ----------------------------------------------------------------------------------------

    def persisted(self, number: int) -> None:
        """Raises `InvariantViolated` for a batch that was never issued."""
        if not self._durability.reported(number):
            return
        self._log.durable(number)
        self._rejoin.persisted(number)
        self._election.vote_durable()
        if self._state.role is Role.LEADER:
            self._replication.count()

    def applied(self, index: int) -> None:
        self._commit.set_applied(index)
        self._unload()

    def _unload(self) -> None:
        """Leave to the log on disk what is applied, and what nobody is about to be sent."""
        log, up_to = self._log, self._commit.applied
        if up_to <= log.unloaded:
            return
        if self._state.role is Role.LEADER:
            kept_above = log.before_newest(self._state.config.unloaded_after_bytes)
            up_to = min(up_to, max(self._replication.held_by_all(), kept_above))
        log.unload(up_to)

    def installed(self, meta: SnapshotMeta) -> None:
        self._commit.installed(meta)

    def snapshot_sent(self, replica: ReplicaId, meta: SnapshotMeta | None, *, ok: bool) -> None:
        self._replication.snapshot_sent(replica, meta.index if meta else 0, ok=ok and meta is not None)

    def compact(self, meta: SnapshotMeta, *, keep_from: int) -> None:
        if meta.index > self._commit.applied:
            raise InvariantViolated(f"snapshot at {meta.index}, but only {self._commit.applied} is applied")
        if meta.index >= self._log.snapshot_index:
            self._log.compact(meta, keep_from=keep_from)

    def _role_changed(self) -> None:
        self._following.role_changed()
        self._quiescence.stop()
        self._transfer.stop()
        self._reconfiguration.role_changed()
        self._reads.stop()
        if self._state.role is Role.LEADER:
            self._replication.start()
        else:
            self._replication.stop()

    def _round_begins(self, number: int) -> None:
        self._reads.round_begins(number)

    # --- outputs ----------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Turn what is owed into messages, as late as possible so that it travels together."""
        self._following.settle()
        self._reads.settle()
        self._replication.settle()
        self._transfer.settle()

    def has_ready(self) -> bool:
        self._settle()
        return bool(
            self._durability.outgoing
            or self._durability.hard_state_due()
            or self._log.unissued()
            or self._rejoin.due()
            or self._commit.to_hand_out()
            or self._replication.snapshots_due
            or self._reads.results
        )

    def ready(self) -> Ready:
        self._settle()
        durability, replication, config = self._durability, self._replication, self._state.config
        messages, durability.outgoing = tuple(durability.outgoing), []
        snapshots, replication.snapshots_due = tuple(replication.snapshots_due), []
        reads, self._reads.results = tuple(self._reads.results), []
        number = 0
        hard_state: HardState | None = None
        install: SnapshotMeta | None = None
        entries: tuple[Entry, ...] = ()
        clear = self._rejoin.due()
        if durability.hard_state_due() or self._log.unissued() or clear:
            number = durability.open_batch()
            hint = min(self._commit.index, self._log.flushed)
            hard_state = durability.issue_hard_state(number, commit_hint=hint)
            install, entries = self._log.issue(number, bytes_max=config.persist_bytes_max)
        if clear:
            self._rejoin.issued(number)
        return Ready(
            persist_number=number,
            hard_state=hard_state,
            entries=entries,
            install=install,
            messages=messages,
            committed=self._commit.hand_out(bytes_max=config.committed_bytes_max),
            send_snapshot=snapshots,
            clear_forgetful=clear,
            reads=reads,
        )

    # --- looking on -------------------------------------------------------------------------------------------------

    @property
    def replica(self) -> ReplicaId:
        return self._state.me

    @property
    def dropped(self) -> dict[str, int]:
        """Messages dropped since the start, by reason."""
        return self._state.dropped

    @property
    def configuration(self) -> Configuration:
        """The one in force: the last in the log, committed or not."""
        return self._state.membership.configuration

    def entry(self, index: int) -> Entry | None:
        """The entry at `index` of the log in memory; None where it is compacted or not there."""
        return self._log.entry(index)

    @property
    def held_messages(self) -> int:
        """Answers that wait for the disk."""
        return self._durability.held_count

    def uncommitted_bytes(self) -> int:
        """Payload held above the commit index."""
        return self._log.bytes_above(self._commit.index)

    def applied_bytes(self) -> int:
        """Payload of applied commands that is still in memory."""
        log = self._log
        return max(0, log.bytes_above(log.unloaded) - log.bytes_above(self._commit.applied))

    def marks(self) -> tuple[object, ...]:
        """Values that stay equal as long as nothing changes that safety depends on; for checks after every event, which
        a whole `status` each time would make slow."""
        state, log, commit = self._state, self._log, self._commit
        matches = self._replication.progress.values() if state.role is Role.LEADER else ()
        return (
            state.term,
            state.role,
            state.leader,
            commit.index,
            log.last_index,
            commit.applied,
            log.last_term,
            log.flushed,
            log.snapshot_index,
            log.first_index,
            state.membership.configuration,
            sum([progress.match_index for progress in matches]),
        )

    def outlook(self) -> tuple[object, ...]:
        state, commit_index, membership = self._state, self._commit.index, self._state.membership
        return (
            state.term,
            state.role,
            state.leader,
            state.role is Role.LEADER and self._commit.applied >= self._replication.noop_index,
            membership.index,
            commit_index >= membership.index,
            membership.configuration,
            commit_index if self._quiescence.asleep else None,
            state.removed,
            self._transfer.transferee,
        )

    def status(self) -> Status:
        state, log, commit = self._state, self._log, self._commit
        leads = state.role is Role.LEADER
        return Status(
            role=state.role,
            term=state.term,
            leader=state.leader,
            vote=state.vote,
            first_index=log.first_index,
            last_index=log.last_index,
            last_term=log.last_term,
            flushed_index=log.flushed,
            commit_index=commit.index,
            applied_index=commit.applied,
            snapshot_index=log.snapshot_index,
            ready_to_serve=leads and commit.applied >= self._replication.noop_index,
            match={peer: progress.match_index for peer, progress in self._replication.progress.items()},
            configuration=state.membership.configuration,
            configuration_index=state.membership.index,
            forgetful=state.forgetful,
            removed=state.removed,
            transferee=self._transfer.transferee,
            quiesced=self._quiescence.asleep,
            storage_stalled=state.storage_stalled,
        )
