"""What replicas say of themselves, and whether they still know it in their next life (HAZARDS 4, 7).

Owns what was ever said: terms, votes, acknowledgements. Invariant: a broken promise raises `Violated` at the event that
broke it. Must not know: how replicas work inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from consensus.core.interface import (
    AppendResponse,
    GroupId,
    HeartbeatResponse,
    ReplicaId,
    VoteRequest,
    VoteResponse,
)
from consensus.simulation.errors import Violated
from consensus.storage.interface import RecoveredGroup
from consensus.transport.interface import Envelope, Report, SnapshotAnswer, SnapshotRequest, unpacked


@dataclass(slots=True)
class _Said:
    term: int = 0
    votes: dict[int, ReplicaId] = field(default_factory=dict)
    acknowledged: tuple[int, int] = (0, 0)
    """(term, match index) of the last acknowledgement."""


class Speech:
    """Listens at the transport of every replica."""

    def __init__(self) -> None:
        self._said: dict[tuple[GroupId, ReplicaId], _Said] = {}

    def sent(self, envelopes: Sequence[Envelope]) -> None:
        for envelope in unpacked(envelopes):
            message = envelope.message
            if isinstance(message, VoteRequest | VoteResponse) and message.pre:
                continue
            if isinstance(message, SnapshotRequest | Report) or (
                isinstance(message, SnapshotAnswer) and not message.installed
            ):
                continue  # The runtime's own: pieces of a file and notes promise nothing.
            who = (envelope.group, message.sender)
            said = self._said.setdefault(who, _Said())
            if message.term < said.term:
                continue  # About an earlier term; what was said then is checked already.
            said.term = message.term
            if isinstance(message, VoteRequest):
                self._voted(who, said, message.term, message.sender)
            elif isinstance(message, VoteResponse) and message.granted:
                self._voted(who, said, message.term, message.to)
            elif isinstance(message, AppendResponse | HeartbeatResponse) and message.match_index:
                said.acknowledged = max(said.acknowledged, (message.term, message.match_index))

    def _voted(self, who: tuple[GroupId, ReplicaId], said: _Said, term: int, candidate: ReplicaId) -> None:
        known = said.votes.setdefault(term, candidate)
        if known != candidate:
            raise Violated(f"group {who[0]}, replica {who[1]}: voted for {known} and {candidate} in term {term}")

    def recovered(self, group: GroupId, replica: ReplicaId, found: RecoveredGroup | None) -> None:
        """A new life begins with `found`; None: it holds nothing of the group."""
        said = self._said.get((group, replica))
        if said is None:
            return
        term = found.hard_state.term if found else 0
        if term < said.term:
            raise Violated(f"group {group}, replica {replica}: spoke in term {said.term}, came back in term {term}")
        vote, promised = (found.hard_state.vote if found else 0), said.votes.get(term, 0)
        if promised and vote != promised:
            raise Violated(f"group {group}, replica {replica}: vote for {promised} in term {term} came back as {vote}")
        acknowledged_term, match_index = said.acknowledged
        last = max((entry.index for entry in found.entries), default=0) if found else 0
        if found and found.snapshot:
            last = max(last, found.snapshot.index)
        if acknowledged_term == term and last < match_index:
            raise Violated(
                f"group {group}, replica {replica}: acknowledged entry {match_index} in term {term}, came back with "
                f"entries up to {last}"
            )
