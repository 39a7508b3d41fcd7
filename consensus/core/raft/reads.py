"""Linearizable reads: an index that state must reach before it may answer (ReadIndex, dissertation section 6.4).

Owns: reads that wait, own and forwarded, and the answers on their way to the host. Invariants: a read is confirmed only
by a heartbeat round of this leader that began after the read was registered (HAZARDS 15), in this term, answered by a
quorum; what is waited for is the leader's own (term, round), never a number that a reader chose (HAZARDS 13); none is
registered before an entry of the own term is committed, nor while leadership is being handed over (HAZARDS 14); each
gets exactly one answer (HAZARDS 28). Must not know: what is read, when it is applied.

Many reads share a round. While one is on its way further reads wait for the next, which begins when that is confirmed,
or with the next heartbeat, whichever is sooner: so there is at most one round a round trip, whatever the load.
"""

from __future__ import annotations

from collections import deque

from consensus.core.interface import ReadRequest, ReadResponse, ReadResult, ReplicaId, Role
from consensus.core.raft.commit import Commit
from consensus.core.raft.durability import Durability
from consensus.core.raft.replication import Replication
from consensus.core.raft.state import ReplicaState
from consensus.core.raft.transfer import Transfer

PATIENCE_TIMEOUTS = 10
"""Election timeouts after which a read is refused. Whoever waits for a leader that is gone hears so within one or two,
from check-quorum or a changed leader; this bound is for questions and answers that are lost though their connection
stands, and must leave room for round trips longer than an election timeout: a leader that a quorum hears leads on."""
_COUNTER_BITS = 32
_INCARNATION_MASK = 2**31 - 1


class _Read:
    """`origin`: the replica that forwarded it; 0 for the own host."""

    __slots__ = ("asked_ms", "origin", "token")

    def __init__(self, origin: ReplicaId, token: int, asked_ms: int) -> None:
        self.origin = origin
        self.token = token
        self.asked_ms = asked_ms


class _Round:
    """Reads that wait for a quorum to answer the heartbeat round `number` or a later one."""

    __slots__ = ("index", "number", "reads", "sent_ms")

    def __init__(self, number: int, index: int, sent_ms: int, reads: list[_Read]) -> None:
        self.number = number
        self.index = index
        self.sent_ms = sent_ms
        self.reads = reads


class Reads:
    __slots__ = (
        "_commit",
        "_counter",
        "_durability",
        "_forwarded",
        "_now_ms",
        "_replication",
        "_rounds",
        "_state",
        "_transfer",
        "_waiting",
        "results",
    )

    def __init__(
        self,
        state: ReplicaState,
        durability: Durability,
        commit: Commit,
        replication: Replication,
        transfer: Transfer,
    ) -> None:
        self._state = state
        self._durability = durability
        self._commit = commit
        self._replication = replication
        self._transfer = transfer
        self._now_ms = 0
        """Time as the core was told of it."""
        self._counter = 0
        self._waiting: deque[_Read] = deque()
        """At the leader: registered with the next round."""
        self._rounds: deque[_Round] = deque()
        """At the leader: on their way, oldest first."""
        self._forwarded: dict[int, tuple[int, int]] = {}
        """Elsewhere: own number -> (the host's token, when it was asked), oldest first."""
        self.results: list[ReadResult] = []
        """For the host."""

    def __len__(self) -> int:
        return len(self._waiting) + sum(len(one.reads) for one in self._rounds) + len(self._forwarded)

    # --- being asked ------------------------------------------------------------------------------------------------

    def ask(self, token: int) -> None:
        """By the own host."""
        state = self._state
        if len(self) >= state.config.reads_max or state.forgetful:
            self._refuse(_Read(0, token, self._now_ms))
        elif state.role is Role.LEADER:
            self._take(_Read(0, token, self._now_ms))
        elif state.leader:
            self._forward(token)
        else:
            self._refuse(_Read(0, token, self._now_ms))

    def asked(self, request: ReadRequest) -> None:
        """By another replica."""
        read = _Read(request.sender, request.token, self._now_ms)
        if self._state.role is not Role.LEADER or len(self) >= self._state.config.reads_max:
            self._refuse(read)
        else:
            self._take(read)

    def _take(self, read: _Read) -> None:
        if self._transfer.gates_reads():
            self._refuse(read)
        else:
            self._waiting.append(read)

    # --- at the leader ----------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Answer what is confirmed, and begin a round for those that wait when none is on its way."""
        if self._rounds:
            self._confirm()
        if self._waiting and not self._rounds and self._may_register():
            self._replication.heartbeat()
            self._confirm()  # a group of one voter confirms itself

    def round_begins(self, number: int) -> None:
        """A heartbeat round is about to leave; whoever waits goes with it, however it came about."""
        if not self._waiting or not self._may_register():
            return
        reads, self._waiting = list(self._waiting), deque()
        self._rounds.append(_Round(number, self._commit.index, self._now_ms, reads))

    def _may_register(self) -> bool:
        """The commit index is known to hold all that was committed before: an entry of the own term is (dissertation
        section 6.4, step 1)."""
        return self._own_term_committed() and not self._transfer.gates_reads()

    def _own_term_committed(self) -> bool:
        return self._state.role is Role.LEADER and self._commit.index >= self._replication.noop_index

    def _confirmed_round(self) -> int:
        """The last round that a quorum answered, in this term."""
        return self._replication.confirmed_round()

    def _confirm(self) -> None:
        confirmed = self._confirmed_round()
        while self._rounds and self._rounds[0].number <= confirmed:
            done = self._rounds.popleft()
            for read in done.reads:
                self._answer(read, done.index, self._now_ms - done.sent_ms)

    # --- elsewhere --------------------------------------------------------------------------------------------------

    def _forward(self, token: int) -> None:
        state = self._state
        self._counter += 1
        # No number comes again, not even in a later life: an answer that was long on its way would be taken for that
        # of a later read (HAZARDS 13).
        number = (state.incarnation & _INCARNATION_MASK) << _COUNTER_BITS | self._counter
        self._forwarded[number] = (token, self._now_ms)
        self._durability.send_durable(
            ReadRequest(sender=state.me, to=state.leader, term=state.term, incarnation=state.incarnation, token=number)
        )

    def answered(self, answer: ReadResponse) -> None:
        found = self._forwarded.pop(answer.token, None)
        if found is None:
            self._state.drop("stale_read_answer")
        elif answer.refused:
            self.results.append(ReadResult(found[0], refused=True))
        else:
            self.results.append(ReadResult(found[0], answer.index, answer.age_ms))

    def disconnected(self, replica: ReplicaId) -> None:
        """The connection closed, and with it went questions and answers."""
        if replica == self._state.leader:
            self._refuse_forwarded()

    # --- ends -------------------------------------------------------------------------------------------------------

    def tick(self, elapsed_ms: int) -> None:
        """What has waited too long is refused."""
        self._now_ms += elapsed_ms
        before = self._now_ms - PATIENCE_TIMEOUTS * self._state.config.election_timeout_ms
        while self._waiting and self._waiting[0].asked_ms <= before:
            self._refuse(self._waiting.popleft())
        while self._rounds and self._rounds[0].sent_ms <= before:
            for read in self._rounds.popleft().reads:
                self._refuse(read)
        while self._forwarded:
            number, (token, asked_ms) = next(iter(self._forwarded.items()))
            if asked_ms > before:
                break
            del self._forwarded[number]
            self.results.append(ReadResult(token, refused=True))

    def stop(self) -> None:
        """Leadership, or the leader, changed, or is being handed over: nothing that waits can be confirmed."""
        rounds, self._rounds = self._rounds, deque()
        waiting, self._waiting = self._waiting, deque()
        for one in rounds:
            for read in one.reads:
                self._refuse(read)
        for read in waiting:
            self._refuse(read)
        self._refuse_forwarded()

    def _refuse_forwarded(self) -> None:
        forwarded, self._forwarded = self._forwarded, {}
        for token, _ in forwarded.values():
            self.results.append(ReadResult(token, refused=True))

    def _refuse(self, read: _Read) -> None:
        if read.origin:
            self._respond(read, refused=True)
        else:
            self.results.append(ReadResult(read.token, refused=True))

    def _answer(self, read: _Read, index: int, age_ms: int) -> None:
        if read.origin:
            self._respond(read, index=index, age_ms=age_ms)
        else:
            self.results.append(ReadResult(read.token, index, age_ms))

    def _respond(self, read: _Read, *, index: int = 0, age_ms: int = 0, refused: bool = False) -> None:
        state = self._state
        self._durability.send_durable(
            ReadResponse(
                sender=state.me,
                to=read.origin,
                term=state.term,
                incarnation=state.incarnation,
                token=read.token,
                index=index,
                age_ms=age_ms,
                refused=refused,
            )
        )
