"""Errors of the worker.

ParameterServerError           code, cause, hint, retryable
├── InvalidArgument            what the caller passed cannot be right; nothing was sent
│   └── NonFinite              a gradient holds NaN or Inf and the model's policy is to reject it
├── NotFound                   no such model
├── SpecMismatch               the name exists with other tensors, optimizer or ranks
├── FailedPrecondition         not in this state
│   ├── RankTaken              somebody else holds the rank (`holder`, `lease_ends_ms`)
│   ├── Gone                   the version that was asked for is no longer kept
│   └── StepPassed             the model went on without this rank's step
├── Unavailable                no server answers, or no quorum; safe to try again
│   └── ResourceExhausted      a server is at a limit (disk, memory, waiters); safe to try again later
├── DeadlineExceeded           the call's budget is used up; `why` says what it was waiting for
├── Cancelled                  the handle was closed while the call ran
├── Closed                     a call after close()
├── Forked                     a handle used in a process that forked from the one that made it
├── SessionFileError           the session file is locked, readable by others, damaged or of another cluster
└── ProtocolError              an answer that no server of this version gives

Every one is one line of cause and one of hint. `retryable` says whether the same call may be made again as it is; a
push that ended with DeadlineExceeded is *not lost*: its step goes on with `Model.wait()`.
"""

from __future__ import annotations


class ParameterServerError(Exception):
    """Root of the tree. `code` is the gRPC status name, `cause` one line, `hint` what to do about it."""

    code = "UNKNOWN"
    retryable = False

    def __init__(self, cause: str, hint: str = "") -> None:
        super().__init__(f"{cause}; {hint}" if hint else cause)
        self.cause = cause
        self.hint = hint


class InvalidArgument(ParameterServerError):
    code = "INVALID_ARGUMENT"


class NonFinite(InvalidArgument):
    """`tensor` and `step` say where; nothing of the step was sent if this rank noticed it itself."""

    def __init__(self, cause: str, hint: str = "", *, tensor: str = "", step: int = 0) -> None:
        super().__init__(cause, hint)
        self.tensor = tensor
        self.step = step


class NotFound(ParameterServerError):
    code = "NOT_FOUND"


class SpecMismatch(ParameterServerError):
    code = "ALREADY_EXISTS"


class FailedPrecondition(ParameterServerError):
    code = "FAILED_PRECONDITION"


class RankTaken(FailedPrecondition):
    """`holder` names the session that has the rank; its lease ends in `lease_ends_ms` unless it is renewed."""

    def __init__(self, cause: str, hint: str = "", *, holder: str = "", lease_ends_ms: int = 0) -> None:
        super().__init__(cause, hint)
        self.holder = holder
        self.lease_ends_ms = lease_ends_ms


class Gone(FailedPrecondition):
    """The version is no longer kept; `version` is the current one where the server said so."""

    def __init__(self, cause: str, hint: str = "", *, version: int = 0) -> None:
        super().__init__(cause, hint)
        self.version = version


class StepPassed(FailedPrecondition):
    pass


class Unavailable(ParameterServerError):
    code = "UNAVAILABLE"
    retryable = True


class ResourceExhausted(Unavailable):
    code = "RESOURCE_EXHAUSTED"


class DeadlineExceeded(ParameterServerError):
    code = "DEADLINE_EXCEEDED"
    retryable = True

    def __init__(self, cause: str, hint: str = "", *, why: str = "") -> None:
        super().__init__(f"{cause} ({why})" if why else cause, hint)
        self.why = why


class Cancelled(ParameterServerError):
    code = "CANCELLED"
    retryable = True


class Closed(ParameterServerError):
    code = "FAILED_PRECONDITION"


class Forked(ParameterServerError):
    code = "FAILED_PRECONDITION"


class SessionFileError(ParameterServerError):
    code = "FAILED_PRECONDITION"


class ProtocolError(ParameterServerError):
    code = "INTERNAL"
