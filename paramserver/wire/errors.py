"""Why a request was not served, in words both ends share.

Owns the reasons and the form of an error on the wire (`ErrorDetail` in the trailing metadata `paramserver-error-bin`).
Invariant: every failed call carries exactly one reason; whether a retry is safe follows from the reason alone.
Must not know: gRPC (a status code is its name here), servers, workers.

WireError
└── Refusal      an operating error with code, reason, message, hint; `retryable` says whether trying again may help
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from google.protobuf.message import DecodeError

from paramserver.v1 import paramserver_pb2 as pb

ERROR_METADATA_KEY = "paramserver-error-bin"
TEXT_CHARACTERS_MAX = 400
"""A text of an error is cut there: it may quote what a client sent, and trailing metadata is limited to some KiB."""


DISK_FULL_RETRY_MS = 1000


class WireError(Exception):
    """Root of the tree."""


class Reason(StrEnum):
    # where to go
    NOT_LEADER = "NOT_LEADER"
    NOT_READY = "NOT_READY"
    UNCONFIRMED = "UNCONFIRMED"
    BUSY = "BUSY"
    # models and their state
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    SPEC_MISMATCH = "SPEC_MISMATCH"
    NOT_OPEN = "NOT_OPEN"
    ALREADY_OPEN = "ALREADY_OPEN"
    GONE = "GONE"
    # views, ranks, leases, placement
    VIEW_CHANGED = "VIEW_CHANGED"
    RANK_TAKEN = "RANK_TAKEN"
    STALE_LEASE = "STALE_LEASE"
    STALE_EPOCH = "STALE_EPOCH"
    SUPERSEDED = "SUPERSEDED"
    # nodes and members of groups
    QUORUM = "QUORUM"
    CONFLICT = "CONFLICT"
    # steps
    FAR_AHEAD = "FAR_AHEAD"
    OUT_OF_ORDER = "OUT_OF_ORDER"
    NON_FINITE = "NON_FINITE"
    # bad input
    INVALID = "INVALID"
    CHECKSUM = "CHECKSUM"
    TOO_LARGE = "TOO_LARGE"
    WRONG_CLUSTER = "WRONG_CLUSTER"
    WRONG_SECRET = "WRONG_SECRET"
    UNKNOWN_SESSION = "UNKNOWN_SESSION"
    # the rest
    DEADLINE = "DEADLINE"
    DISK_FULL = "DISK_FULL"
    DAMAGED = "DAMAGED"
    SHUTTING_DOWN = "SHUTTING_DOWN"
    INTERNAL = "INTERNAL"


CODES: dict[Reason, str] = {
    Reason.NOT_LEADER: "UNAVAILABLE",
    Reason.NOT_READY: "UNAVAILABLE",
    Reason.UNCONFIRMED: "UNAVAILABLE",
    Reason.BUSY: "RESOURCE_EXHAUSTED",
    Reason.NOT_FOUND: "NOT_FOUND",
    Reason.ALREADY_EXISTS: "ALREADY_EXISTS",
    Reason.SPEC_MISMATCH: "ALREADY_EXISTS",
    Reason.NOT_OPEN: "UNAVAILABLE",
    Reason.ALREADY_OPEN: "FAILED_PRECONDITION",
    Reason.GONE: "FAILED_PRECONDITION",
    Reason.VIEW_CHANGED: "FAILED_PRECONDITION",
    Reason.RANK_TAKEN: "FAILED_PRECONDITION",
    Reason.STALE_LEASE: "FAILED_PRECONDITION",
    Reason.STALE_EPOCH: "FAILED_PRECONDITION",
    Reason.SUPERSEDED: "ABORTED",
    Reason.QUORUM: "FAILED_PRECONDITION",
    Reason.CONFLICT: "FAILED_PRECONDITION",
    Reason.FAR_AHEAD: "FAILED_PRECONDITION",
    Reason.OUT_OF_ORDER: "INVALID_ARGUMENT",
    Reason.NON_FINITE: "INVALID_ARGUMENT",
    Reason.INVALID: "INVALID_ARGUMENT",
    Reason.CHECKSUM: "INVALID_ARGUMENT",
    Reason.TOO_LARGE: "RESOURCE_EXHAUSTED",
    Reason.WRONG_CLUSTER: "FAILED_PRECONDITION",
    Reason.WRONG_SECRET: "PERMISSION_DENIED",
    Reason.UNKNOWN_SESSION: "FAILED_PRECONDITION",
    Reason.DEADLINE: "DEADLINE_EXCEEDED",
    Reason.DISK_FULL: "RESOURCE_EXHAUSTED",
    Reason.DAMAGED: "UNAVAILABLE",
    Reason.SHUTTING_DOWN: "UNAVAILABLE",
    Reason.INTERNAL: "INTERNAL",
}
"""The gRPC status code, by name, that goes with each reason."""

RETRYABLE: frozenset[Reason] = frozenset(
    {
        Reason.NOT_LEADER,
        Reason.NOT_READY,
        Reason.UNCONFIRMED,
        Reason.BUSY,
        Reason.NOT_OPEN,
        Reason.VIEW_CHANGED,
        Reason.STALE_EPOCH,
        Reason.DISK_FULL,
        Reason.DAMAGED,
        Reason.SHUTTING_DOWN,
        Reason.CHECKSUM,
    }
)
"""Reasons after which the same request, sent again (perhaps elsewhere, or after learning the new view), may succeed.
Every request of ours may be repeated without harm: pushes are checked in apply (RULES S1), commands carry sequences."""


def shown(value: object) -> str:
    """Foreign text as it may be shown: escaped, and cut at `TEXT_CHARACTERS_MAX`."""
    text = value if isinstance(value, str) else repr(value)
    text = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
    return text if len(text) <= TEXT_CHARACTERS_MAX else text[: TEXT_CHARACTERS_MAX - 3] + "..."


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a value that came from outside."""

    field: str
    expected: str
    received: str

    def __str__(self) -> str:
        return f"{self.field}: expected {self.expected}, received {shown(self.received)}"


class Refusal(WireError):
    """A request was not served. Fields that do not apply are empty or 0 (the meaning of each is in the .proto)."""

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        code: str | None = None,
        field: str = "",
        expected: str = "",
        received: str = "",
        hint: str = "",
        leader_address: str = "",
        group: int = 0,
        term: int = 0,
        view: int = 0,
        version: int = 0,
        retry_after_ms: int = 0,
        holder: str = "",
        lease_ends_ms: int = 0,
        epoch: int = 0,
        rank: int = 0,
    ) -> None:
        super().__init__(shown(message))
        self.reason = reason
        self.code = code or CODES[reason]
        self.message = shown(message)
        self.field = field
        self.expected = shown(expected)
        self.received = shown(received)
        self.hint = shown(hint)
        self.leader_address = leader_address
        self.group = group
        self.term = term
        self.view = view
        self.version = version
        self.retry_after_ms = retry_after_ms
        self.holder = shown(holder)
        self.lease_ends_ms = lease_ends_ms
        self.epoch = epoch
        self.rank = rank

    @property
    def retryable(self) -> bool:
        return self.reason in RETRYABLE

    def __repr__(self) -> str:
        return f"Refusal({self.reason.value}, {self.message!r})"

    def detail(self) -> bytes:
        """The `ErrorDetail` for the trailing metadata."""
        return pb.ErrorDetail(
            reason=self.reason.value,
            field=self.field,
            expected=self.expected,
            received=self.received,
            hint=self.hint,
            leader_address=self.leader_address,
            group=self.group,
            term=self.term,
            view=self.view,
            version=self.version,
            retry_after_ms=self.retry_after_ms,
            holder=self.holder,
            lease_ends_ms=self.lease_ends_ms,
            epoch=self.epoch,
            rank=self.rank,
        ).SerializeToString()

    @classmethod
    def from_detail(cls, code: str, message: str, detail: bytes | None) -> Refusal:
        """Back from status code, status text and metadata; without (or with unknown) detail the reason is guessed
        from the code."""
        parsed = pb.ErrorDetail()
        try:
            parsed.ParseFromString(detail or b"")
            reason = Reason(parsed.reason)
        except (DecodeError, ValueError):
            return cls(_REASON_OF_CODE.get(code, Reason.INTERNAL), message, code=code)
        return cls(
            reason,
            message,
            code=code,
            field=parsed.field,
            expected=parsed.expected,
            received=parsed.received,
            hint=parsed.hint,
            leader_address=parsed.leader_address,
            group=parsed.group,
            term=parsed.term,
            view=parsed.view,
            version=parsed.version,
            retry_after_ms=parsed.retry_after_ms,
            holder=parsed.holder,
            lease_ends_ms=parsed.lease_ends_ms,
            epoch=parsed.epoch,
            rank=parsed.rank,
        )


_REASON_OF_CODE: dict[str, Reason] = {
    "UNAVAILABLE": Reason.NOT_READY,
    "RESOURCE_EXHAUSTED": Reason.BUSY,
    "NOT_FOUND": Reason.NOT_FOUND,
    "INVALID_ARGUMENT": Reason.INVALID,
    "DEADLINE_EXCEEDED": Reason.DEADLINE,
    "PERMISSION_DENIED": Reason.WRONG_SECRET,
}


def invalid(field: str, expected: str, received: object, *, reason: Reason = Reason.INVALID) -> Refusal:
    """A refusal that names the field and what was expected."""
    problem = Problem(field, expected, shown(received))
    return Refusal(reason, str(problem), field=field, expected=expected, received=problem.received)


def refuse_problems(problems: Iterable[Problem]) -> None:
    """Raise one `Refusal` that names every problem; nothing if there is none. The fields are those of the first."""
    found = list(problems)
    if not found:
        return
    first = found[0]
    raise Refusal(
        Reason.INVALID,
        "; ".join(str(problem) for problem in found),
        field=first.field,
        expected=first.expected,
        received=first.received,
    )


def disk_full(group: int) -> Refusal:
    """What every write gets from a leader whose disk is full (RULES W5); nothing was appended."""
    return Refusal(
        Reason.DISK_FULL,
        f"the disk of group {group}'s leader is full: it takes no writes until there is space",
        hint="free space on that node; writes go on by themselves",
        group=group,
        retry_after_ms=DISK_FULL_RETRY_MS,
    )
