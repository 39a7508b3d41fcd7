"""From a server's refusal to the error a caller sees."""

from __future__ import annotations

from paramserver.wire.errors import Reason, Refusal
from worker import errors

_BY_CODE: dict[str, type[errors.ParameterServerError]] = {
    "INVALID_ARGUMENT": errors.InvalidArgument,
    "NOT_FOUND": errors.NotFound,
    "FAILED_PRECONDITION": errors.FailedPrecondition,
    "PERMISSION_DENIED": errors.FailedPrecondition,
    "ABORTED": errors.FailedPrecondition,
    "UNAVAILABLE": errors.Unavailable,
    "RESOURCE_EXHAUSTED": errors.ResourceExhausted,
    "UNIMPLEMENTED": errors.ProtocolError,
}
_TRANSIENT_CODES = frozenset({"UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED", "INTERNAL", "UNKNOWN", "ABORTED"})
"""Statuses that gRPC, a proxy or a dying server makes of a broken connection, when the server gave no detail of its
own."""
_LATER = frozenset({Reason.DEADLINE, Reason.SUPERSEDED, Reason.INTERNAL})
"""Not retryable as such, but every request here may be repeated without harm, so it is, until the budget ends."""


def transient(refusal: Refusal) -> bool:
    """Whether the same request may be sent again, now or a little later, perhaps elsewhere."""
    return refusal.retryable or refusal.reason in _LATER or refusal.code in _TRANSIENT_CODES


def to_error(refusal: Refusal) -> errors.ParameterServerError:
    """The error of worker.errors that says what the server said."""
    match refusal.reason:
        case Reason.RANK_TAKEN:
            ends = f", lease ends in {refusal.lease_ends_ms / 1000:.1f} s" if refusal.lease_ends_ms else ""
            holder = f" by {refusal.holder}" if refusal.holder else ""
            return errors.RankTaken(
                f"rank {refusal.rank} is taken{holder}{ends}",
                refusal.hint or "the same session takes it back at once; anybody else waits until the lease has ended",
                holder=refusal.holder,
                lease_ends_ms=refusal.lease_ends_ms,
            )
        case Reason.SPEC_MISMATCH | Reason.ALREADY_EXISTS if refusal.code == "ALREADY_EXISTS":
            return errors.SpecMismatch(
                _cause(refusal), refusal.hint or "open it with its own spec, or choose a new name"
            )
        case Reason.GONE:
            return errors.Gone(_cause(refusal), refusal.hint, version=refusal.version)
        case Reason.NON_FINITE:
            return errors.NonFinite(_cause(refusal), refusal.hint)
    return _BY_CODE.get(refusal.code, errors.ProtocolError)(_cause(refusal), refusal.hint)


def _cause(refusal: Refusal) -> str:
    cause = refusal.message
    if refusal.expected and refusal.expected not in cause:
        cause += f" (expected {refusal.expected}"
        cause += f", received {refusal.received})" if refusal.received else ")"
    return cause
