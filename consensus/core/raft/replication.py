"""A replica that leads: bringing its log to the others, and counting what they hold.

Owns: progress of each peer, heartbeat rounds, the bound on uncommitted bytes, and the no-op of the term. Invariants:
an answer counts only in the term it was given in (HAZARDS 5); what is in flight is not sent again: silence is answered
by a question at the end of what was sent (HAZARDS 3); heartbeats carry no entries. Must not know: how it was elected.

Requests are made when the host drains (`settle`), so that proposals which come together travel together.
"""

from __future__ import annotations

from collections.abc import Callable

from consensus.core.errors import Busy, InvariantViolated
from consensus.core.interface import (
    AppendRequest,
    AppendResponse,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatResponse,
    Message,
    Payload,
    ReplicaId,
    Role,
)
from consensus.core.quorum import committed_index, has_quorum
from consensus.core.raft.commit import Commit
from consensus.core.raft.durability import Durability
from consensus.core.raft.log import payload_bytes
from consensus.core.raft.progress import Progress, ProgressState
from consensus.core.raft.state import ReplicaState


class Replication:
    __slots__ = (
        "_commit",
        "_due",
        "_durability",
        "_heartbeat_elapsed_ms",
        "_on_commit",
        "_on_round",
        "_quorum_elapsed_ms",
        "_state",
        "noop_index",
        "progress",
        "quiesce",
        "round",
        "snapshots_due",
    )

    def __init__(
        self,
        state: ReplicaState,
        durability: Durability,
        commit: Commit,
        on_round: Callable[[int], None],
        on_commit: Callable[[], None],
    ) -> None:
        """`on_round` is called with the number of each heartbeat round before it leaves, `on_commit` whenever the
        leader's commit index rose."""
        self._state = state
        self._durability = durability
        self._commit = commit
        self._on_round = on_round
        self._on_commit = on_commit
        self.quiesce = False
        """Heartbeats say that the group may sleep. Changed by quiescence.py only."""
        self.progress: dict[ReplicaId, Progress] = {}
        self.stop()

    # --- beginning and end of leadership ----------------------------------------------------------------------------

    def start(self) -> None:
        """This replica just won: commit a no-op of the new term, tell everybody at once (Raft sections 5.2 and 8)."""
        state = self._state
        after = state.log.last_index + 1
        self.progress = {peer: Progress(peer, next_index=after) for peer in state.membership.peers}
        self.noop_index = after
        state.log.append(Entry(state.term, after, EntryKind.NOOP, b"", 0))
        self.heartbeat()
        self._due = True

    def stop(self) -> None:
        self.progress = {}
        self.snapshots_due: list[ReplicaId] = []
        self.noop_index = 0
        self.round = 0
        """The latest heartbeat round of this term."""
        self._heartbeat_elapsed_ms = 0
        self._quorum_elapsed_ms = 0
        self._due = False

    def lost_quorum(self, elapsed_ms: int) -> bool:
        """Check-quorum (dissertation section 6.2): each election timeout a majority must have given a sign of life, or
        this replica leads nobody and must stop saying so."""
        self._quorum_elapsed_ms += elapsed_ms
        if self._quorum_elapsed_ms < self._state.config.election_timeout_ms:
            return False
        self._quorum_elapsed_ms = 0
        alive = {peer for peer, progress in self.progress.items() if progress.contact}
        for progress in self.progress.values():
            progress.contact = False
        return not has_quorum(self._state.membership.configuration, alive | {self._state.me})

    def forget_contact(self) -> None:
        """Time stood still here: check-quorum begins anew."""
        self._quorum_elapsed_ms = 0
        for progress in self.progress.values():
            progress.contact = False

    def confirmed_round(self) -> int:
        """The latest heartbeat round that a quorum answered: when it was sent, nobody else could win an election and
        commit without them. Replicas that may have forgotten whom they followed don't count."""
        rounds = {peer: progress.round for peer, progress in self.progress.items() if not progress.forgetful}
        rounds[self._state.me] = self.round
        return committed_index(self._state.membership.configuration, rounds)

    def reachable(self, replica: ReplicaId) -> bool:
        """It answered within the last election timeout."""
        progress = self.progress.get(replica)
        return progress is not None and progress.silence_ms < self._state.config.election_timeout_ms

    def held_by_all(self) -> int:
        """Every member that answered within the last election timeout holds everything up to here durably."""
        timeout_ms = self._state.config.election_timeout_ms
        matches = [progress.match_index for progress in self.progress.values() if progress.silence_ms < timeout_ms]
        return min(matches, default=self._state.log.last_index)

    # --- proposals --------------------------------------------------------------------------------------------------

    @property
    def uncommitted_bytes(self) -> int:
        """Payload above the commit index, earlier terms' included."""
        return self._state.log.bytes_above(self._commit.index)

    def propose(self, payload: Payload, crc: int) -> tuple[int, int]:
        uncommitted, bytes_max = self.uncommitted_bytes, self._state.config.uncommitted_bytes_max
        if uncommitted and uncommitted + payload_bytes(payload) > bytes_max:
            raise Busy(uncommitted, bytes_max)
        return self.append(payload, crc, EntryKind.NORMAL)

    def append(self, payload: Payload, crc: int, kind: EntryKind) -> tuple[int, int]:
        """Add an entry of this term, whatever is uncommitted; returns its (term, index)."""
        state = self._state
        entry = Entry(state.term, state.log.last_index + 1, kind, payload, crc)
        state.log.append(entry)
        self._due = True
        return entry.term, entry.index

    # --- members that come and go -----------------------------------------------------------------------------------

    def reconfigured(self) -> None:
        """A configuration was appended: its new members are served from now on. Those that it removes are served until
        it is committed, so that they learn of it."""
        after = self._state.log.last_index + 1
        for peer in self._state.membership.peers:
            if peer not in self.progress:
                self.progress[peer] = Progress(peer, next_index=after)
        self._due = True

    def drop_removed(self) -> list[ReplicaId]:
        """Forget those who are no members; returns them."""
        removed = [peer for peer in self.progress if peer not in self._state.membership.members]
        for peer in removed:
            del self.progress[peer]
        self.snapshots_due = [peer for peer in self.snapshots_due if peer not in removed]
        return removed

    # --- time -------------------------------------------------------------------------------------------------------

    def tick(self, elapsed_ms: int, *, beat: bool | None = None) -> None:
        """`beat`: whether a heartbeat is due, as the host says that beats for all groups at once; None: judge by the
        time."""
        config = self._state.config
        for progress in self.progress.values():
            progress.silence_ms += elapsed_ms
            if progress.window:
                progress.quiet_ms += elapsed_ms
                if progress.quiet_ms >= config.nudge_ms:
                    self._nudge(progress)
            self._announce(progress, elapsed_ms)
        self._heartbeat_elapsed_ms += elapsed_ms
        due = self._heartbeat_elapsed_ms >= config.heartbeat_ms
        if due:
            self._heartbeat_elapsed_ms %= config.heartbeat_ms
        if due if beat is None else beat:
            self.heartbeat()

    def _announce(self, progress: Progress, elapsed_ms: int) -> None:
        """Tell a commit that nothing else told for `announce_ms`."""
        if progress.state is not ProgressState.REPLICATE or not self._untold(progress):
            progress.untold_ms = 0
            return
        progress.untold_ms += elapsed_ms
        if progress.untold_ms >= self._state.config.announce_ms:
            self._request(progress, progress.next_index - 1, ())

    def _untold(self, progress: Progress) -> bool:
        """Something is committed, and nothing on its way would carry that."""
        return not progress.window and progress.commit_sent < self._commit.index

    def heartbeat(self) -> None:
        """One round to everybody."""
        state = self._state
        self.round += 1
        self._on_round(self.round)
        for peer, progress in self.progress.items():
            self._durability.send(
                Heartbeat(
                    sender=state.me,
                    to=peer,
                    term=state.term,
                    incarnation=state.incarnation,
                    commit=min(self._commit.index, progress.match_index),
                    round=self.round,
                    quiesce=self.quiesce,
                )
            )

    def _nudge(self, progress: Progress) -> None:
        """No answer for a while: ask behind everything in flight. If something was lost, the answer says where."""
        progress.quiet_ms = 0
        if self._state.log.term(progress.next_index - 1) is None:
            # Compacted meanwhile; the question can't be asked any more.
            progress.probe(progress.match_index + 1)
            self._due = True
            return
        self._request(progress, progress.next_index - 1, ())

    # --- answers ----------------------------------------------------------------------------------------------------

    def counts(self, message: Message) -> bool:
        """Answers of another term say nothing about this one (HAZARDS 5)."""
        return message.term == self._state.term

    def append_answer(self, answer: AppendResponse) -> None:
        progress = self._answering(answer)
        if progress is None:
            return
        if answer.rejected:
            if answer.conflict_index > progress.match_index:
                self._due |= progress.rejected(self._retry_index(progress, answer))
        self._matched(progress, answer.match_index, probed=not answer.rejected)

    def heartbeat_answer(self, answer: HeartbeatResponse) -> None:
        progress = self._answering(answer)
        if progress is None:
            return
        progress.round = max(progress.round, min(answer.round, self.round))
        if progress.state is ProgressState.PROBE and progress.probing:
            # The probe, or its answer, may be lost.
            progress.probing = False
            self._due = True
        self._matched(progress, answer.match_index, probed=False)

    def _answering(self, answer: AppendResponse | HeartbeatResponse) -> Progress | None:
        if self._state.role is not Role.LEADER or not self.counts(answer):
            self._state.drop("stale_answer")
            return None
        if answer.match_index > self._state.log.last_index:
            self._state.drop("match_beyond_log")
            return None
        progress = self.progress.get(answer.sender)
        if progress is None:
            # It leaves the group, and an earlier leader already stopped serving it.
            self._state.drop("not_served")
            return None
        if progress.heard(forgetful=answer.forgetful):
            self.count()
            # Counting may have ended this leadership.
            return self.progress.get(answer.sender)
        return progress

    def _retry_index(self, progress: Progress, answer: AppendResponse) -> int:
        """Where the logs may meet (Raft section 5.3: one round trip a term, not an entry). The peer's entries from
        `conflict_index` to the predecessor it refused have terms of at most `conflict_term`, so ours of higher terms
        can't match them."""
        log = self._state.log
        if answer.conflict_term == 0:
            return answer.conflict_index
        after = log.start_of_term(answer.conflict_term + 1)
        if log.term(after - 1) != answer.conflict_term:
            after = min(after, answer.conflict_index)
        return after if after < progress.next_index else answer.conflict_index

    def _matched(self, progress: Progress, index: int, *, probed: bool) -> None:
        if not progress.matched(index, probed=probed):
            return
        self._due = True
        log = self._state.log
        if progress.state is ProgressState.SNAPSHOT and log.term(progress.match_index) is not None:
            progress.probe(progress.match_index + 1)
        self.count()

    def count(self) -> None:
        """Something became durable here or there: commit what a majority holds."""
        state, commit = self._state, self._commit
        matches = {peer: progress.match_index for peer, progress in self.progress.items() if not progress.forgetful}
        matches[state.me] = state.log.flushed
        if not commit.count(state.membership.configuration, matches, leader_term=state.term):
            return
        self._due = True
        self._on_commit()

    def restarted(self, replica: ReplicaId) -> None:
        """The peer is in a new life: it may have lost what was not durable, and all that was in flight (RULES C4)."""
        progress = self.progress.get(replica)
        if progress is not None:
            progress.forget(self._state.log.last_index + 1)
            self._due = True

    def connected(self, replica: ReplicaId) -> None:
        """The connection to the peer stands again: what was in flight is probably lost."""
        progress = self.progress.get(replica)
        if progress is None:
            return
        if progress.state is ProgressState.PROBE:
            progress.probing = False
            self._due = True
        elif progress.window:
            self._nudge(progress)

    def snapshot_sent(self, replica: ReplicaId, index: int, *, ok: bool) -> None:
        """The host's transfer ended. Whether the peer holds the snapshot durably is for its own answer to say."""
        progress = self.progress.get(replica)
        if progress is None or progress.state is not ProgressState.SNAPSHOT:
            return
        progress.probe(index + 1 if ok else progress.match_index + 1)
        # After a failure the next try waits for a sign of life.
        progress.probing = not ok
        self._due = True

    # --- requests ---------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Send whatever may be sent now."""
        if not self._due:
            return
        self._due = False
        for progress in self.progress.values():
            self._pump(progress)

    def _pump(self, progress: Progress) -> None:
        log, config = self._state.log, self._state.config
        if progress.state is ProgressState.SNAPSHOT or (progress.state is ProgressState.PROBE and progress.probing):
            return
        if log.term(progress.next_index - 1) is None:
            progress.wait_for_snapshot()
            self.snapshots_due.append(progress.replica)
            return
        if progress.state is ProgressState.PROBE:
            entries = log.slice(progress.next_index, bytes_max=config.probe_bytes_max, at_least_one=False)
            progress.probe_sent(progress.next_index - 1 + len(entries))
            self._request(progress, progress.next_index - 1, entries)
            return
        last = log.last_index
        while progress.next_index <= last:
            stored = progress.next_index <= log.unloaded
            bytes_max = config.inflight_stored_bytes_max if stored else config.inflight_bytes_max
            if progress.window_full(messages_max=config.inflight_messages_max, bytes_max=bytes_max):
                break
            previous = progress.next_index - 1
            entries = log.slice(progress.next_index, bytes_max=config.append_bytes_max)
            last_sent = previous + len(entries)
            progress.sent(last_sent, log.bytes_above(previous) - log.bytes_above(last_sent))
            self._request(progress, previous, entries)
        if not config.announce_ms and self._untold(progress):
            self._request(progress, progress.next_index - 1, ())

    def _request(self, progress: Progress, previous_index: int, entries: tuple[Entry, ...]) -> None:
        state = self._state
        previous_term = state.log.term(previous_index)
        if previous_term is None:
            raise InvariantViolated(f"a request to {progress.replica} would follow {previous_index}, which is not held")
        commit = self._commit.index
        progress.commit_sent = max(progress.commit_sent, min(commit, previous_index + len(entries)))
        self._durability.send(
            AppendRequest(
                sender=state.me,
                to=progress.replica,
                term=state.term,
                incarnation=state.incarnation,
                previous_index=previous_index,
                previous_term=previous_term,
                commit=commit,
                entries=entries,
            )
        )
