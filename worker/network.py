"""What the worker needs of a network: a seam, so that tests drive the engine without sockets.

Invariant: whatever goes wrong on the way to a server or comes back from it is a `Refusal` (paramserver.wire.errors),
with the server's own detail where there is one; nothing of gRPC passes this line. Must not know: who leads, what is
retried.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from enum import StrEnum
from typing import Any, Protocol

from paramserver.wire.frames import BlockFrame, PushFrame


class Method(StrEnum):
    """Unary calls, as `Service/Method`."""

    DESCRIBE_CLUSTER = "Catalogue/DescribeCluster"
    OPEN_SESSION = "Catalogue/OpenSession"
    CREATE_MODEL = "Catalogue/CreateModel"
    DESCRIBE_MODEL = "Catalogue/DescribeModel"
    CLAIM_INITIALIZATION = "Catalogue/ClaimInitialization"
    OPEN_MODEL = "Catalogue/OpenModel"
    CLAIM_RANK = "Catalogue/ClaimRank"
    RENEW_LEASE = "Catalogue/RenewLease"
    RELEASE_RANK = "Catalogue/ReleaseRank"
    SET_LEARNING_RATE = "Catalogue/SetLearningRate"
    PIN_MODEL = "Catalogue/PinModel"
    RELEASE_PIN = "Catalogue/ReleasePin"
    LIST_MODELS = "Catalogue/ListModels"
    DELETE_MODEL = "Catalogue/DeleteModel"
    LOAD_MODEL = "Catalogue/LoadModel"


class PushMethod(StrEnum):
    PUSH_PULL = "Data/PushPull"
    INITIALIZE = "Data/Initialize"


class StreamEnded(Exception):
    """The stream takes no more frames; `receive` says why."""


class PushStream(Protocol):
    """One PushPull or Initialize stream."""

    async def send(self, frame: PushFrame) -> None:
        """Returns when the frame was taken by flow control. Raises StreamEnded."""

    async def receive(self) -> BlockFrame | None:
        """The next answer; None when the server ended the stream without a complaint. Raises Refusal."""

    def cancel(self) -> None:
        """Give the stream up; nothing of it is read any more."""


class Network(Protocol):
    """Channels to servers, by address. All methods are for the event loop it was made on."""

    async def call(self, address: str, method: Method, request: Any, timeout_s: float) -> Any:
        """A unary call: protobuf message in, protobuf message out. Raises Refusal."""

    def push(self, address: str, method: PushMethod) -> PushStream: ...

    def pull(self, address: str, request: Any, timeout_s: float) -> AsyncGenerator[BlockFrame, None]:
        """Blocks of one Pull. Raises Refusal."""

    def announcements(self, address: str, request: Any) -> AsyncGenerator[Any, None]:
        """`Announcement` messages, until the stream breaks (Refusal) or ends."""

    def reachable(self, address: str) -> bool:
        """Whether a connection stands now."""

    async def close(self) -> None: ...
