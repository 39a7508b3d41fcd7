"""Leadership is handed over: because somebody asks, or because this leader's disk stands still.

Owns: the transferee of a leader, how long it has had, and what a stalled disk does to a leader (HAZARDS 16).
Invariants: the transferee is told to campaign only when it holds everything durably, and it obeys only if it knows that
itself and is a voter (HAZARDS 21); meanwhile the leader takes no proposals and confirms no reads (HAZARDS 14); after
one election timeout it leads on as if nothing had been. Source: dissertation section 3.10. Must not know: how votes are
counted.

A transfer endangers nothing: the transferee wins an ordinary election or none. The order may come late, twice, or after
it was given up; it costs one election then.
"""

from __future__ import annotations

from collections.abc import Callable

from consensus.core.errors import Busy, NotLeader, TransferRefused
from consensus.core.interface import CampaignNow, ReplicaId, Role
from consensus.core.quorum import has_quorum
from consensus.core.raft.commit import Commit
from consensus.core.raft.durability import Durability
from consensus.core.raft.replication import Replication
from consensus.core.raft.state import ReplicaState


def may_take_over(state: ReplicaState, order: CampaignNow, *, durable_match: int) -> bool:
    """At the transferee: it votes, its disk works, and it has flushed the leader's last entry. What it only holds in
    memory could be lost, and with it the votes that were given for it."""
    return state.membership.votes() and not state.storage_stalled and durable_match >= order.last_index


class Transfer:
    """Of one replica; it matters while that leads."""

    __slots__ = (
        "_commit",
        "_disconnected",
        "_durability",
        "_elapsed_ms",
        "_repeat_ms",
        "_replication",
        "_state",
        "_tried",
        "transferee",
    )

    def __init__(
        self,
        state: ReplicaState,
        durability: Durability,
        commit: Commit,
        replication: Replication,
        disconnected: Callable[[ReplicaId], bool],
    ) -> None:
        """`disconnected`: the control connection to that replica is closed, as far as the host knows."""
        self._state = state
        self._durability = durability
        self._commit = commit
        self._replication = replication
        self._disconnected = disconnected
        self.transferee: ReplicaId = 0
        """Leadership is on its way there; 0 when it is not."""
        self.stop()

    def stop(self) -> None:
        """Leadership begins or ends."""
        self._tried = False
        """To leave because the disk stands still."""
        self._end()

    def _end(self) -> None:
        self.transferee = 0
        self._elapsed_ms = 0
        self._repeat_ms = 0
        """Until the order is given (again): it may be lost."""

    # --- beginning --------------------------------------------------------------------------------------------------

    def begin(self, to: ReplicaId) -> None:
        """Raises `NotLeader` or `TransferRefused`; asking again for what is under way changes nothing."""
        state = self._state
        if state.role is not Role.LEADER:
            raise NotLeader(state.leader, state.term)
        if to and to == self.transferee:
            return
        problem = self.problem_of(to)
        if problem:
            raise TransferRefused(problem)
        self._start(to)

    def _start(self, to: ReplicaId) -> None:
        self.transferee = to
        self._elapsed_ms = 0
        self._repeat_ms = 0

    def problem_of(self, to: ReplicaId) -> str:
        """Why leadership can't go there; empty when it can."""
        state, configuration = self._state, self._state.membership.configuration
        if state.role is not Role.LEADER:
            return f"replica {state.me} does not lead"
        if self.transferee:
            return f"leadership is already being handed to replica {self.transferee}"
        if to == state.me:
            return f"replica {to} leads already"
        if to not in state.membership.members:
            return f"replica {to} is no member of the group"
        if to not in configuration.voters:
            leaves = to in configuration.outgoing
            return f"replica {to} {'is about to leave the group' if leaves else 'is a learner: it has no vote'}"
        progress = self._replication.progress.get(to)
        if progress is not None and progress.forgetful:
            return f"replica {to} may have forgotten what it acknowledged, and does not vote until it is filled again"
        if self._disconnected(to):
            return f"replica {to} is not connected"
        if not self._replication.reachable(to):
            return f"replica {to} has not answered for an election timeout"
        return ""

    # --- under way --------------------------------------------------------------------------------------------------

    def refuse_proposals(self) -> None:
        """Raises `Busy` while leadership is being handed over: the transferee would never catch up, and what is
        appended after its election is lost."""
        if self.transferee:
            raise Busy(
                self._replication.uncommitted_bytes,
                self._state.config.uncommitted_bytes_max,
                handing_over_to=self.transferee,
            )

    def gates_reads(self) -> bool:
        """Whether reads can't be confirmed here now: another may lead already (HAZARDS 14)."""
        return self.transferee != 0

    def tick(self, elapsed_ms: int) -> None:
        if not self.transferee:
            return
        self._elapsed_ms += elapsed_ms
        self._repeat_ms -= elapsed_ms
        if self._elapsed_ms >= self._state.config.election_timeout_ms or self._hopeless():
            self._end()

    def _hopeless(self) -> bool:
        """It died, or is no voter any more."""
        to = self.transferee
        return to not in self._state.membership.configuration.voters or self._disconnected(to)

    def settle(self) -> None:
        """Give the order as soon as it can be obeyed."""
        if not self.transferee or self._repeat_ms > 0 or not self._caught_up():
            return
        state = self._state
        self._repeat_ms = state.config.heartbeat_ms
        self._durability.send(
            CampaignNow(
                sender=state.me,
                to=self.transferee,
                term=state.term,
                incarnation=state.incarnation,
                last_index=state.log.last_index,
            )
        )

    def _caught_up(self) -> bool:
        """The transferee has flushed the last entry. For a while the leader also waits until it has applied it, so that
        those who proposed hear from it what became of it; it can't with a disk that stands still."""
        last = self._state.log.last_index
        progress = self._replication.progress.get(self.transferee)
        if progress is None or progress.match_index < last:
            return False
        patient = self._elapsed_ms < self._state.config.election_timeout_ms // 2 and not self._state.storage_stalled
        return self._commit.applied >= last or not patient

    # --- the disk ---------------------------------------------------------------------------------------------------

    def leave(self) -> bool:
        """A leader's disk stands still: hand over to the voter that has most. False when it should step down instead,
        because there is nobody to hand over to, or it was tried.

        A leader without which there is no quorum leads on: whoever came after it would need the same disk. While that
        is so because others are down it tries again and again: it does not campaign itself, so if it stepped down with
        more in its log than those who are left, nobody could win."""
        state = self._state
        others = [voter for voter in state.membership.voters if voter != state.me]
        if not has_quorum(state.membership.configuration, others):
            return True
        if self._tried and not self._needed():
            return False
        self._tried = True
        return self.to_best() or self._needed()

    def _needed(self) -> bool:
        """Those who are there have a quorum with this leader only."""
        state, progress = self._state, self._replication.progress
        there = {
            voter
            for voter in state.membership.voters
            if self._replication.reachable(voter) and not self._disconnected(voter) and not progress[voter].forgetful
        }
        configuration = state.membership.configuration
        return not has_quorum(configuration, there) and has_quorum(configuration, there | {state.me})

    def disk_recovered(self) -> None:
        """The next time that it stands still is another one."""
        self._tried = False

    def to_best(self) -> bool:
        """Hand over to the voter that has most, the preferred one of equals; False when none is fit."""
        if self.transferee:
            return True
        state, progress = self._state, self._replication.progress
        voters = state.membership.configuration.voters
        fit = [voter for voter in voters if voter != state.me and not self.problem_of(voter)]
        if fit:
            self._start(max(fit, key=lambda voter: progress[voter].match_index))
        return bool(fit)
