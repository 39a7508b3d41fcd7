"""Errors of the worker.

ParameterServerError           code, cause, hint, retryable
├── InvalidArgument            what the caller passed cannot be right; nothing was sent
│   ├── NonFinite              a gradient holds NaN or Inf and the model's policy is to reject it
│   └── NormTooLarge           a gradient is longer than this handle was told to let pass
├── NotFound                   no such model
├── SpecMismatch               the name exists with another spec (`found`, `asked`)
├── FailedPrecondition         not in this state
│   ├── RankTaken              somebody else holds the rank (`holder`, `lease_ends_ms`)
│   ├── Gone                   the version that was asked for is no longer kept
│   └── StepPassed             the model went on without this rank's step
├── Unavailable                no server answers, or no quorum; safe to try again
│   └── ResourceExhausted      a server is at a limit (disk, memory, waiters); safe to try again later
├── DeviceFailed               a GPU: CUDA error, device lost; the process has to start again
│   └── DeviceOutOfMemory      of the GPU, or of page-locked memory; the device works on
├── OutcomeUnknown             a step was given up before every block was acknowledged (`step`, `blocks`)
├── DeadlineExceeded           the call's budget is used up; `why` says what it was waiting for
├── Cancelled                  the handle was closed while the call ran
├── Closed                     a call after close()
├── Forked                     a handle used in a process that forked from the one that made it
├── SessionFileError           the session file is locked, readable by others, damaged or of another cluster
├── CheckpointError            the file is none, damaged, of a newer version, or does not fit; nothing was changed
└── ProtocolError              an answer that no server of this version gives

Every one is one line of cause and one of hint. `retryable` says whether the same call may be made again as it is; a
push that ended with DeadlineExceeded is *not lost*: its step goes on with `Model.wait()`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paramserver.wire.spec import ModelSpec


class ParameterServerError(Exception):
    """Root of the tree. `code` is the gRPC status name, `cause` one line, `hint` what to do about it, `retryable`
    whether the same call may be made again as it is."""

    code = "UNKNOWN"
    retryable = False

    def __init__(self, cause: str, hint: str = "") -> None:
        super().__init__(f"{cause}; {hint}" if hint else cause)
        self.cause = cause
        self.hint = hint


class InvalidArgument(ParameterServerError):
    """What the caller passed cannot be right; the cause names it, what was expected and what came. Nothing was sent."""

    code = "INVALID_ARGUMENT"


class NonFinite(InvalidArgument):
    """`tensor` and `step` say where; nothing of the step was sent if this rank noticed it itself."""

    def __init__(self, cause: str, hint: str = "", *, tensor: str = "", step: int = 0) -> None:
        super().__init__(cause, hint)
        self.tensor = tensor
        self.step = step


class NormTooLarge(InvalidArgument):
    """`norm` is the gradient's, `bound` what this handle lets pass (`reject_norm`); nothing of the step was sent."""

    def __init__(self, cause: str, hint: str = "", *, norm: float = 0.0, bound: float = 0.0, step: int = 0) -> None:
        super().__init__(cause, hint)
        self.norm = norm
        self.bound = bound
        self.step = step


class NotFound(ParameterServerError):
    """No model of that name."""

    code = "NOT_FOUND"


class SpecMismatch(ParameterServerError):
    """`found` is the spec that the model has, `asked` the one of this call; the cause says where they differ."""

    code = "ALREADY_EXISTS"

    def __init__(
        self, cause: str, hint: str = "", *, found: ModelSpec | None = None, asked: ModelSpec | None = None
    ) -> None:
        super().__init__(cause, hint)
        self.found = found
        self.asked = asked


class FailedPrecondition(ParameterServerError):
    """Right in itself, but not in this state."""

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
    """The model went on without this rank's step: somebody else pushed it."""


class Unavailable(ParameterServerError):
    """No server answers, or no quorum."""

    code = "UNAVAILABLE"
    retryable = True


class ResourceExhausted(Unavailable):
    """A server is at a limit: disk, memory, waiters."""

    code = "RESOURCE_EXHAUSTED"


class DeviceFailed(ParameterServerError):
    """A GPU refused or is gone. No step is sent in part for it: a gradient is sent when all of it is in host memory."""

    code = "INTERNAL"


class DeviceOutOfMemory(DeviceFailed):
    """Of the device, or page-locked memory of the host. The device works on; the same step may be computed again."""

    code = "RESOURCE_EXHAUSTED"
    retryable = True


class OutcomeUnknown(ParameterServerError):
    """`step` was given up with `blocks` not acknowledged: each of them was applied, will be, or never will. Whatever it
    is, the model's own count of steps knows: open the model again, and compute `Model.step`."""

    code = "UNKNOWN"

    def __init__(self, cause: str, hint: str = "", *, step: int = 0, blocks: tuple[int, ...] = ()) -> None:
        super().__init__(cause, hint)
        self.step = step
        self.blocks = blocks


class DeadlineExceeded(ParameterServerError):
    """The call's budget is used up; `why` says what it was waiting for."""

    code = "DEADLINE_EXCEEDED"
    retryable = True

    def __init__(self, cause: str, hint: str = "", *, why: str = "") -> None:
        super().__init__(f"{cause} ({why})" if why else cause, hint)
        self.why = why


class Cancelled(ParameterServerError):
    """The handle was closed while the call ran."""

    code = "CANCELLED"
    retryable = True


class Closed(ParameterServerError):
    """A call after `close()`."""

    code = "FAILED_PRECONDITION"


class Forked(ParameterServerError):
    """A handle used in a process that forked from the one that made it."""

    code = "FAILED_PRECONDITION"


class SessionFileError(ParameterServerError):
    """The session file is locked, readable by others, damaged, or of another cluster."""

    code = "FAILED_PRECONDITION"


class CheckpointError(ParameterServerError):
    """A file could not be written, or is not what a checkpoint of this version is; what was there is as it was."""

    code = "FAILED_PRECONDITION"


class ProtocolError(ParameterServerError):
    """An answer that no server of this version gives."""

    code = "INTERNAL"
