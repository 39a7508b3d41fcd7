"""The `Data` service: streams of pushes at a group's leader, and pulls at any replica.

A push stream is two loops: one reads a frame, offers it to the shard's leader, and reads the next only when that one
was admitted (RULES S5: back-pressure, not an error); the other writes replies as they come. Invariants: frames are
checked in form before they are offered; while REPLIES_MAX replies wait for a slow reader nothing more is read from it;
a stream ends with a `Refusal`, or after the last reply to a client that has sent its last frame. Must not know: sums,
versions, Raft.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import TypeAlias

import grpc
import grpc.aio

from consensus.core.interface import GroupId
from paramserver.rpc.calls import Calls, Context
from paramserver.rpc.groups import Groups
from paramserver.rpc.pull import Puller, Wanted, checked
from paramserver.shard.leader import ShardLeader
from paramserver.shard.streams import Stream
from paramserver.v1 import paramserver_pb2 as pb
from paramserver.wire.errors import Reason, Refusal, invalid
from paramserver.wire.frames import BlockFrame, BlockStatus, Hello, decode_push, encode_block

log = logging.getLogger(__name__)

SERVICE = "paramserver.v1.Data"
REPLIES_MAX = 64
"""Replies of one stream that wait to be written, each with at most a block; then its frames are not read any more."""
HELLO_TIMEOUT_MS = 10_000
"""A stream that does not say hello for so long is ended."""

Open: TypeAlias = Callable[[ShardLeader, Hello, "Outbox"], Stream]


class Outbox:
    """What the shard's leader says to one stream (its sink). Used on the event loop only."""

    def __init__(self) -> None:
        self.refusal: Refusal | None = None
        self.unanswered = 0
        """Frames offered and not replied to."""
        self.finished = False
        """The client has sent its last frame."""
        self.changed = asyncio.Event()
        self.room = asyncio.Event()
        self.room.set()
        self._replies: deque[BlockFrame] = deque()

    def reply(self, frame: BlockFrame) -> None:
        if frame.status is not BlockStatus.STREAM_OPEN:
            self.unanswered -= 1
        self._replies.append(frame)
        if len(self._replies) >= REPLIES_MAX:
            self.room.clear()
        self.changed.set()

    def end(self, refusal: Refusal) -> None:
        """Nothing more is taken. Replies that were made before still go out."""
        if self.refusal is None:
            self.refusal = refusal
        self.changed.set()

    def finish(self) -> None:
        self.finished = True
        self.changed.set()

    def next(self) -> BlockFrame | None:
        if not self._replies:
            return None
        frame = self._replies.popleft()
        if len(self._replies) < REPLIES_MAX:
            self.room.set()
        return frame


class DataService:
    """`leaders`: this node's data groups, led here or not."""

    def __init__(
        self, *, leaders: Mapping[GroupId, ShardLeader], groups: Groups, puller: Puller, cluster: bytes
    ) -> None:
        self._leaders = leaders
        self._groups = groups
        self._puller = puller
        self._cluster = cluster
        self.streams = 0
        """Push streams open now."""

    def handlers(self, calls: Calls) -> grpc.GenericRpcHandler:
        methods = {
            "PushPull": calls.stream(self._push_pull),
            "Initialize": calls.stream(self._initialize),
            "Pull": calls.server_stream(pb.PullRequest, self._pull),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    # --- pushes

    async def _push_pull(self, context: Context) -> None:
        await self._stream(context, lambda leader, hello, outbox: leader.open_stream(hello, outbox))

    async def _initialize(self, context: Context) -> None:
        await self._stream(context, lambda leader, hello, outbox: leader.open_initialization(hello, outbox))

    async def _stream(self, context: Context, opened: Open) -> None:
        outbox = Outbox()
        hello = await self._hello(context)
        try:
            stream = opened(self._leader(hello), hello, outbox)
        except Refusal as refusal:
            raise self._complete(refusal) from None
        self.streams += 1
        reader = asyncio.create_task(self._read(context, stream, outbox), name="push stream")
        try:
            await self._write(context, outbox)
        finally:
            self.streams -= 1
            stream.close()
            reader.cancel()

    async def _hello(self, context: Context) -> Hello:
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_MS / 1000):
                data = await context.read()
        except TimeoutError:
            raise Refusal(Reason.DEADLINE, f"no hello within {HELLO_TIMEOUT_MS} ms") from None
        if data is grpc.aio.EOF:
            raise invalid("hello", "a first frame with a hello", "the end of the stream")
        hello = decode_push(data).hello
        if hello is None:
            raise invalid("hello", "a first frame with a hello", "a frame without one")
        if hello.cluster != self._cluster:
            raise Refusal(
                Reason.WRONG_CLUSTER,
                "the stream is for another cluster",
                field="hello.cluster",
                expected=self._cluster.hex(),
                received=hello.cluster.hex(),
            )
        return hello

    def _leader(self, hello: Hello) -> ShardLeader:
        leader = self._leaders.get(hello.group)
        if leader is not None:
            return leader
        if hello.group not in self._groups.layout or hello.group == 0:
            raise Refusal(Reason.NOT_FOUND, f"no data group has the number {hello.group}", field="hello.group")
        raise self._groups.elsewhere(hello.group)

    async def _read(self, context: Context, stream: Stream, outbox: Outbox) -> None:
        try:
            while (data := await context.read()) is not grpc.aio.EOF:
                frame = decode_push(data)
                del data
                if frame.hello is not None:
                    raise invalid("hello", "one hello, in the first frame", "another one")
                admitted = asyncio.Event()
                outbox.unanswered += 1
                stream.offer(frame, admitted.set)
                del frame
                await admitted.wait()
                await outbox.room.wait()
            outbox.finish()
        except Refusal as refusal:
            outbox.end(refusal)
        except Exception:
            # Whatever went wrong, the other loop must not wait for this one for ever.
            log.exception("reading a push stream failed")
            outbox.end(Refusal(Reason.INTERNAL, "a defect of the server; its log says more"))

    async def _write(self, context: Context, outbox: Outbox) -> None:
        while True:
            while (frame := outbox.next()) is not None:
                await context.write(encode_block(frame))
            if outbox.refusal is not None:
                raise self._complete(outbox.refusal)
            if outbox.finished and outbox.unanswered <= 0:
                return
            outbox.changed.clear()
            await outbox.changed.wait()

    def _complete(self, refusal: Refusal) -> Refusal:
        """NOT_LEADER with the newest that is known of the way there."""
        if refusal.reason is Reason.NOT_LEADER and not refusal.leader_address:
            return self._groups.elsewhere(refusal.group)
        return refusal

    # --- pulls

    async def _pull(self, request: pb.PullRequest, context: Context) -> None:
        if request.cluster != self._cluster:
            raise Refusal(Reason.WRONG_CLUSTER, "the request is for another cluster", field="cluster")
        which = request.WhichOneof("want")
        if which is None:
            raise invalid("want", "version or min_version", "neither")
        wanted = checked(
            Wanted(
                group=request.group,
                model=request.model,
                generation=request.generation,
                placement_epoch=request.placement_epoch,
                blocks=tuple(request.blocks),
                version=request.version if which == "version" else request.min_version,
                exact=which == "version",
                linearizable=request.linearizable,
                bounded_ms=request.bounded_ms,
            )
        )
        async with contextlib.aclosing(self._puller.frames(wanted, context.time_remaining())) as frames:
            async for frame in frames:
                await context.write(encode_block(frame))
