"""How a planned transfer of leadership begins at the leader: first its owner stops taking work (RULES C6).

Owns: the pause between the order and the core's transfer, and what the listener is told of hand-overs, whoever began
them. Invariants: the pause is bounded; whatever ends a hand-over, the listener hears of the end. Must not know: what
the owner takes, how a core hands over.
"""

from __future__ import annotations

from consensus.core.errors import NotLeader, TransferRefused
from consensus.core.interface import Core, ReplicaId, Role, Status
from consensus.runtime.interface import GroupListener


class Handover:
    """Of one group."""

    __slots__ = ("_elapsed_ms", "_listener", "_term", "_to", "_told")

    def __init__(self, listener: GroupListener) -> None:
        self._listener = listener
        self._to: ReplicaId = 0
        self._term = 0
        self._elapsed_ms = 0
        self._told: ReplicaId = 0
        """What the listener heard last."""

    @property
    def draining(self) -> bool:
        """A transfer waits for the owner to be done with what it took."""
        return self._to != 0

    def begin(self, to: ReplicaId, term: int) -> None:
        """The core has nothing against it, in this term."""
        self._to, self._term, self._elapsed_ms = to, term, 0
        self._tell(to)

    def tick(self, elapsed_ms: int) -> None:
        self._elapsed_ms += elapsed_ms

    def settle(self, core: Core, status: Status, *, drain_ms: int) -> None:
        """Let the core begin when the owner is done, or had its time."""
        leads = status.role is Role.LEADER
        if self._to and not (leads and status.term == self._term):
            self._to = 0
        if self._to and (self._elapsed_ms >= drain_ms or self._listener.drained()):
            to, self._to = self._to, 0
            try:
                core.transfer(to)
            except (NotLeader, TransferRefused):
                # It became impossible meanwhile; who asked hears that nobody took over.
                self._tell(0)
            else:
                self._tell(to)
        elif not self._to:
            self._tell(status.transferee if leads else 0)

    def _tell(self, to: ReplicaId) -> None:
        if to != self._told:
            self._told = to
            self._listener.handing_over(to)
