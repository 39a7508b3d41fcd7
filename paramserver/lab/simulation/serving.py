"""The server's end of a push stream: what the gRPC service does around `ShardLeader`, without gRPC.

Owns frames that arrived and were not offered yet. Invariant: one frame is offered at a time, the next when it was
admitted (RULES S5). Must not know: ranks' plans, networks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from paramserver.shard.leader import ShardLeader
from paramserver.shard.streams import PushStream, StreamState
from paramserver.wire.errors import Refusal
from paramserver.wire.frames import BlockFrame, Hello, PushFrame, decode_push, encode_push


class ServedStream:
    """`Sink` of one stream."""

    def __init__(
        self, hello: Hello, *, replied: Callable[[BlockFrame], None], ended: Callable[[Refusal], None]
    ) -> None:
        self._hello = hello
        self._replied = replied
        self._ended = ended
        self._stream: PushStream | None = None
        self._frames: deque[PushFrame] = deque()
        self._offering = False
        self._closed = False

    def open(self, leader: ShardLeader) -> None:
        try:
            self._stream = leader.open_stream(self._hello, self)
        except Refusal as refusal:
            self._ended(refusal)
        self._offer()

    def arrived(self, frame: PushFrame) -> None:
        self._frames.append(decode_push(encode_push(frame)))
        self._offer()

    def close(self) -> None:
        self._closed = True
        if self._stream is not None:
            self._stream.close()

    def _offer(self) -> None:
        stream = self._stream
        if stream is None or self._offering or self._closed or stream.state is StreamState.ENDED or not self._frames:
            return
        self._offering = True
        stream.offer(self._frames.popleft(), self._admitted)

    def _admitted(self) -> None:
        self._offering = False
        self._offer()

    # --- Sink -------------------------------------------------------------------------------------------------------

    def reply(self, frame: BlockFrame) -> None:
        # By reference: if anybody wrote to a published buffer before it was sent, the bits would tell (RULES R6).
        self._replied(frame)

    def end(self, refusal: Refusal) -> None:
        self._ended(refusal)
