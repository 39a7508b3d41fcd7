"""Streams of a worker to a group's leader, as the leader sees them; the bytes are somebody else's.

Invariants: a stream has at most one frame that was offered and not admitted (that is the back-pressure, RULES S5, and
the bound on what parked pushes take); every offered frame is admitted exactly once, also when its stream ends; a
stream ends at most once, and nothing is replied after that. Must not know: gRPC, event loops.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Protocol, TypeAlias

from paramserver.wire.errors import Refusal
from paramserver.wire.frames import BlockFrame, Hello, PushFrame

Admitted: TypeAlias = Callable[[], None]


class Sink(Protocol):
    """The way back to the worker. Called on the host's thread; must not block. One `BlockFrame` object may be given to
    several sinks, so it can be encoded once."""

    def reply(self, frame: BlockFrame) -> None: ...

    def end(self, refusal: Refusal) -> None:
        """The leader ends the stream."""


class StreamState(Enum):
    PARKED = 1
    """Not judged yet: the leader is not ready, or the view is newer than the group's."""
    OPEN = 2
    ENDED = 3


class StreamOwner(Protocol):
    def offered(self, stream: Stream) -> None: ...

    def closed(self, stream: Stream) -> None: ...


class Stream:
    """What push streams and streams of initial values share."""

    def __init__(self, owner: StreamOwner, hello: Hello, sink: Sink) -> None:
        self._owner = owner
        self.hello = hello
        self.sink = sink
        self.state = StreamState.PARKED
        self.held: tuple[PushFrame, Admitted] | None = None

    @property
    def rank(self) -> int:
        return self.hello.rank

    def offer(self, frame: PushFrame, admitted: Admitted) -> None:
        """The next frame. `admitted` is called once the frame was taken, answered or dropped; only then may the next
        one be offered."""
        if self.held is not None:
            raise ValueError("offer: the frame before was not admitted yet")
        self.held = (frame, admitted)
        self._owner.offered(self)

    def close(self) -> None:
        """The worker closed the stream, or its connection broke. What was taken stays taken, as long as another rank's
        stream stands."""
        self._owner.closed(self)


class PushStream(Stream):
    """`position`: (step, place of the block in the shard) of the last frame that was judged."""

    position: tuple[int, int] | None = None
    doubted: PushFrame | None = None
    """The frame that is held, while the leader asks whether it still is one."""


class InitialStream(Stream):
    """`in_flight`: blocks encoded or proposed and not yet stored."""

    in_flight: int = 0
