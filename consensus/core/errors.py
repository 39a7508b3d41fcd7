"""Errors of the consensus core.

ConsensusError
├── NotLeader          operating error: propose elsewhere (`leader` may be 0: unknown)
├── Busy               operating error: uncommitted bytes are at their bound, or leadership is being handed over
├── MembershipRefused  operating error: the change can't be made (now), and why
├── TransferRefused    operating error: leadership can't be handed to that replica, and why
└── InvariantViolated  a bug: the process must end
"""

from __future__ import annotations


class ConsensusError(Exception):
    """Root of the tree."""


class NotLeader(ConsensusError):
    """This replica does not lead; `leader` is the replica it follows, 0 when unknown. Safe to retry there."""

    def __init__(self, leader: int, term: int) -> None:
        super().__init__(f"not the leader in term {term}; leader is {leader or 'unknown'}")
        self.leader = leader
        self.term = term


class Busy(ConsensusError):
    """The uncommitted tail of the log is at its bound, or leadership is being handed to the replica `handing_over_to`
    (else 0). Nothing was appended; safe to retry later."""

    def __init__(self, uncommitted_bytes: int, uncommitted_bytes_max: int, *, handing_over_to: int = 0) -> None:
        super().__init__(
            f"leadership is being handed to replica {handing_over_to}"
            if handing_over_to
            else f"uncommitted log holds {uncommitted_bytes} bytes, bound is {uncommitted_bytes_max}"
        )
        self.handing_over_to = handing_over_to
        self.uncommitted_bytes = uncommitted_bytes
        self.uncommitted_bytes_max = uncommitted_bytes_max


class MembershipRefused(ConsensusError):
    """The change of membership was not appended. `later`: the same change may be possible later."""

    def __init__(self, reason: str, *, later: bool) -> None:
        super().__init__(reason)
        self.later = later


class TransferRefused(ConsensusError):
    """Leadership was not handed over. Nothing changed."""


class InvariantViolated(ConsensusError):
    """Something that can never be true was true. Going on would risk data, so the process ends."""
