"""What the client raises: `from paramserver.errors import RankTaken`, or `paramserver.errors.RankTaken`.

Here alone, for `paramserver.NonFinite` is a policy of models and no error. worker.errors draws the tree.
"""

from worker.errors import Cancelled as Cancelled
from worker.errors import CheckpointError as CheckpointError
from worker.errors import Closed as Closed
from worker.errors import DeadlineExceeded as DeadlineExceeded
from worker.errors import DeviceFailed as DeviceFailed
from worker.errors import DeviceOutOfMemory as DeviceOutOfMemory
from worker.errors import FailedPrecondition as FailedPrecondition
from worker.errors import Forked as Forked
from worker.errors import Gone as Gone
from worker.errors import InvalidArgument as InvalidArgument
from worker.errors import NonFinite as NonFinite
from worker.errors import NormTooLarge as NormTooLarge
from worker.errors import NotFound as NotFound
from worker.errors import OutcomeUnknown as OutcomeUnknown
from worker.errors import ParameterServerError as ParameterServerError
from worker.errors import ProtocolError as ProtocolError
from worker.errors import RankTaken as RankTaken
from worker.errors import ResourceExhausted as ResourceExhausted
from worker.errors import SessionFileError as SessionFileError
from worker.errors import SpecMismatch as SpecMismatch
from worker.errors import StepPassed as StepPassed
from worker.errors import Unavailable as Unavailable

__all__ = [
    "Cancelled",
    "CheckpointError",
    "Closed",
    "DeadlineExceeded",
    "DeviceFailed",
    "DeviceOutOfMemory",
    "FailedPrecondition",
    "Forked",
    "Gone",
    "InvalidArgument",
    "NonFinite",
    "NormTooLarge",
    "NotFound",
    "OutcomeUnknown",
    "ParameterServerError",
    "ProtocolError",
    "RankTaken",
    "ResourceExhausted",
    "SessionFileError",
    "SpecMismatch",
    "StepPassed",
    "Unavailable",
]
