"""Orders of owners to one replica: change who the members are, hand leadership to another.

Owns what is refused at once and why, who waits for the others, and that a hand-over begins when the owner has drained.
Invariants: each order gets exactly one outcome; how many wait is bounded; one target of leadership at a time. Must not
know: commands and reads, lanes, messages.

Each is called inside an input, with a core that runs.
"""

from __future__ import annotations

from consensus.core.errors import Busy, MembershipRefused, NotLeader
from consensus.core.interface import Core, MembershipChange, ReplicaId, Role, Status
from consensus.runtime.handover import Handover
from consensus.runtime.interface import GroupListener, Refused, Transferred
from consensus.runtime.options import RuntimeOptions
from consensus.runtime.requests import MembershipDone, Memberships, TransferDone, Transfers


class Orders:
    """Of one group."""

    __slots__ = ("_options", "_replica", "handover", "memberships", "transfers")

    def __init__(self, replica: ReplicaId, listener: GroupListener, options: RuntimeOptions) -> None:
        self._replica = replica
        self._options = options
        self.memberships = Memberships()
        self.transfers = Transfers()
        self.handover = Handover(listener)

    def change(self, core: Core, change: MembershipChange, done: MembershipDone) -> bool:
        """Whether the core took it; otherwise `done` has its outcome."""
        led_term = core.status().term
        if len(self.memberships) >= self._options.orders_max:
            done(Refused(self._replica, led_term, busy=True, reason="too many changes of membership wait"))
            return False
        try:
            term, index = core.propose_membership(change)
        except NotLeader as error:
            done(Refused(error.leader, error.term, reason=str(error)))
            return False
        except MembershipRefused as error:
            done(Refused(self._replica, led_term, busy=error.later, reason=str(error)))
            return False
        except Busy as error:
            done(Refused(self._replica, led_term, busy=True, reason=str(error)))
            return False
        self.memberships.add(change, done, led_term=led_term, term=term, index=index)
        return True

    def transfer(self, core: Core, to: ReplicaId, done: TransferDone) -> bool:
        """Whether `done` waits now; otherwise it has its outcome."""
        status = core.status()
        if status.role is Role.LEADER and to == self._replica:
            done(Transferred(self._replica, status.term))
            return False
        if self.transfers.target not in (0, to):
            reason = f"leadership is being handed to replica {self.transfers.target}"
            done(Refused(self._replica, status.term, busy=True, reason=reason))
            return False
        if len(self.transfers) >= self._options.orders_max:
            done(Refused(self._replica, status.term, busy=True, reason="too many transfers wait"))
            return False
        if not self.transfers.target:
            problem = core.transfer_problem(to)
            if problem:
                leader = self._replica if status.role is Role.LEADER else status.leader
                done(Refused(leader, status.term, reason=problem))
                return False
            core.wake()
            self.handover.begin(to, status.term)
        self.transfers.add(to, status.term, done)
        return True

    def tick(self, elapsed_ms: int) -> None:
        self.transfers.tick(elapsed_ms)
        self.handover.tick(elapsed_ms)

    def settle(self, core: Core, status: Status) -> None:
        """The core may stand elsewhere: answer what is decided."""
        self.memberships.settle(status)
        self.handover.settle(core, status, drain_ms=self._options.drain_ms)
        if not self.handover.draining:
            self.transfers.settle(core.status(), give_up_ms=self._options.transfer_ms)

    def stop(self, term: int) -> None:
        """What waits gets its outcome."""
        self.memberships.stop()
        self.transfers.stop(term)
