"""Groups that sleep while nothing happens (RULES C5).

Owns: whether this replica is asleep, and when it falls asleep and wakes. Invariants: a leader sleeps only after every
member, voter or not, holds everything, everything is committed, and each of them answered a heartbeat that said so; a
follower sleeps on such a heartbeat only if its own log ends with it, durable, verified and committed; whatever happens
wakes; a leader that was woken because somebody wants its place does not protect it before a quorum confirmed it
(HAZARDS 17). Must not know: how the host watches nodes for the groups asleep.

Learners keep a group awake like voters: who lacks something must be fed, and a leader asleep feeds nobody.
A sleeping leader has no clock, so it can't notice that it lost its quorum (HAZARDS 12): the host wakes it when a
member's connection closes or its node falls silent, and then check-quorum begins anew.
"""

from __future__ import annotations

from collections.abc import Callable

from consensus.core.interface import (
    AnyMessage,
    AppendRequest,
    AppendResponse,
    Heartbeat,
    HeartbeatResponse,
    ReadRequest,
    RejoinRequest,
    ReplicaId,
    Role,
    VoteRequest,
    VoteResponse,
)
from consensus.core.raft.commit import Commit
from consensus.core.raft.progress import ProgressState
from consensus.core.raft.replication import Replication
from consensus.core.raft.state import ReplicaState


class Quiescence:
    __slots__ = (
        "_commit",
        "_disconnected",
        "_idle_ms",
        "_replication",
        "_round",
        "_state",
        "_wake_round",
        "asleep",
    )

    def __init__(
        self,
        state: ReplicaState,
        commit: Commit,
        replication: Replication,
        disconnected: Callable[[ReplicaId], bool],
    ) -> None:
        self._state = state
        self._commit = commit
        self._replication = replication
        self._disconnected = disconnected
        self.asleep = False
        self.stop()

    def stop(self) -> None:
        """The role, the term or the leader changed."""
        self.asleep = False
        self._idle_ms = 0
        self._round = 0
        """The heartbeat round that proposed to sleep, at a leader first, at a follower last; 0 when awake."""
        self._wake_round = 0
        """Of a leader that was asleep: a quorum must answer this round before it is sure again; 0 when it is."""
        self._replication.quiesce = False

    # --- falling asleep ---------------------------------------------------------------------------------------------

    def tick(self, elapsed_ms: int, *, busy: bool) -> None:
        """At a leader. `busy`: something is under way that this file can't see."""
        config = self._state.config
        if not config.quiesce_after_ms:
            return
        if busy or not self._all_done():
            self.stir()
            return
        self._idle_ms += elapsed_ms
        if self._idle_ms < config.quiesce_after_ms:
            return
        replication = self._replication
        if not self._round:
            self._round = replication.round + 1
            replication.quiesce = True
            replication.heartbeat()
        elif all(progress.round >= self._round for progress in replication.progress.values()):
            self.asleep = True

    def _all_done(self) -> bool:
        """Nobody lacks anything, and everybody is there."""
        log, last = self._state.log, self._state.log.last_index
        if not self.sure() or self._commit.index != last or log.flushed != last or self._state.storage_stalled:
            return False
        if self._state.membership.configuration.outgoing:
            return False
        return all(
            progress.match_index == last
            and progress.state is ProgressState.REPLICATE
            and not progress.forgetful
            and not self._disconnected(progress.replica)
            for progress in self._replication.progress.values()
        )

    def told(self, heartbeat: Heartbeat, *, verified: int, busy: bool) -> None:
        """At a follower, when the heartbeat was followed. `verified`: up to there its log is known to be the
        leader's."""
        state, last = self._state, self._state.log.last_index
        may = not busy and not state.storage_stalled and not self._disconnected(heartbeat.sender)
        done = last == heartbeat.commit == self._commit.index == verified == state.log.flushed
        if heartbeat.quiesce and may and done:
            self.asleep = True
            self._round = heartbeat.round

    # --- waking -----------------------------------------------------------------------------------------------------

    def wakes(self, message: AnyMessage) -> bool:
        """Whether a message means that something happened. What was on its way before does not."""
        state = self._state
        if isinstance(message, VoteRequest | ReadRequest | RejoinRequest):
            return True
        if message.term != state.term:
            return message.term > state.term
        if state.role is Role.LEADER:
            match message:
                case HeartbeatResponse():
                    return message.forgetful
                case AppendResponse():
                    return message.forgetful or message.rejected
                case VoteResponse():
                    return False
                case _:
                    return True
        match message:
            case Heartbeat():
                return not message.quiesce and message.round > self._round
            case AppendRequest():
                ends = message.previous_index + len(message.entries)
                return ends > state.log.last_index or message.commit > self._commit.index
            case HeartbeatResponse() | AppendResponse() | VoteResponse():
                return False
            case _:
                return True

    def stir(self) -> bool:
        """Something happens. True when this replica was asleep: a leader's heartbeats have begun again then, and its
        followers wake with them; a follower's timers should begin anew."""
        slept, self.asleep = self.asleep, False
        self._idle_ms = 0
        if self._state.role is not Role.LEADER:
            self._round = 0
            return slept
        if self._round:
            self._round = 0
            self._replication.quiesce = False
            if slept:
                self._wake_round = self._replication.round + 1
                self._replication.forget_contact()
            self._replication.heartbeat()
        return slept

    def sure(self) -> bool:
        """At a leader: it has not slept, or a quorum has followed it since."""
        if self._wake_round and self._replication.confirmed_round() >= self._wake_round:
            self._wake_round = 0
        return self._wake_round == 0
