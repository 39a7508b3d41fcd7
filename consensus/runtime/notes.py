"""What the state machines of a group tell each other beside the log.

Owns which notes and reports are heard, and how a report is sent. Invariants: they go between a leader and its followers
only, and are heard only in the term they were sent in; each is bounded; one may be lost. Must not know: what they mean.
"""

from __future__ import annotations

from collections.abc import Callable

from consensus.core.interface import AppendResponse, Core, HeartbeatResponse, ReplicaId, Role
from consensus.runtime.interface import GroupListener
from consensus.runtime.services import Services
from consensus.transport.interface import Report, TransportMessage


class Notes:
    """Of one replica."""

    __slots__ = ("_listener", "_replica", "_send", "_services")

    def __init__(
        self,
        services: Services,
        *,
        replica: ReplicaId,
        listener: GroupListener,
        send: Callable[[TransportMessage], None],
    ) -> None:
        self._services = services
        self._replica = replica
        self._listener = listener
        self._send = send

    def report(self, core: Core, to: ReplicaId, content: bytes) -> None:
        if len(content) > self._services.options.note_bytes_max:
            self._services.dropped["note_too_long"] += 1
            return
        term, incarnation = core.status().term, self._services.incarnation
        self._send(Report(sender=self._replica, to=to, term=term, incarnation=incarnation, content=content))

    def noted(self, core: Core, message: AppendResponse | HeartbeatResponse, note: bytes) -> None:
        """By a leader, with an answer of a follower's."""
        status = core.status()
        if status.role is Role.LEADER and message.term == status.term and message.sender in status.match:
            self._listener.noted(message.sender, note)

    def reported(self, core: Core, report: Report) -> None:
        """To the leader by its followers, and by the leader to its followers."""
        status = core.status()
        known = status.role is Role.LEADER and report.sender in status.match
        if report.to == self._replica and report.term == status.term and (known or report.sender == status.leader):
            self._listener.noted(report.sender, report.content)
        else:
            self._services.dropped["report_unexpected"] += 1
