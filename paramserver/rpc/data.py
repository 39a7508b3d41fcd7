"""The `Data` service: streams of pushes at a group's leader, and pulls at any replica.

A push stream is two loops: one reads a frame, offers it to the shard's leader, and reads the next only when that one
was admitted (RULES S5: back-pressure, not an error); the other writes replies as they come. Invariants: frames are
checked in form before they are offered; at most `streams_max` streams are open; what waits for a reader is bounded
(`outbox`, `room`), and a reader that takes nothing of it is ended; a stream ends with a `Refusal`, or after the last
reply to a client that has sent its last frame. Must not know: sums, versions, Raft.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import TypeAlias

import grpc
import grpc.aio

from consensus.core.interface import GroupId
from paramserver.observe.load import GroupLoad, Load
from paramserver.rpc.admission import Busy
from paramserver.rpc.calls import Calls, Context
from paramserver.rpc.groups import Groups
from paramserver.rpc.limits import Limits
from paramserver.rpc.outbox import Outbox
from paramserver.rpc.pull import Puller, Wanted, checked
from paramserver.rpc.room import Held, NoRoom, WritingRoom
from paramserver.shard.leader import ShardLeader
from paramserver.shard.streams import Stream
from paramserver.v1 import paramserver_pb2 as pb
from paramserver.wire.codecs import Codec
from paramserver.wire.errors import Reason, Refusal, invalid
from paramserver.wire.frames import Hello, decode_push, encode_block
from paramserver.wire.protos import enum_value

log = logging.getLogger(__name__)

SERVICE = "paramserver.v1.Data"
HELLO_TIMEOUT_MS = 10_000
"""A stream that does not say hello for so long is ended."""
PULL_REQUEST_BYTES = 1024
PULL_BLOCK_BYTES = 6
"""A pull is at most PULL_REQUEST_BYTES long, and so much for each block that it may name."""

Open: TypeAlias = Callable[[ShardLeader, Hello, Outbox], Stream]


class DataService:
    """`leaders`: this node's data groups, led here or not. `load`: where is counted what is done for clients."""

    def __init__(
        self,
        *,
        leaders: Mapping[GroupId, ShardLeader],
        groups: Groups,
        puller: Puller,
        cluster: bytes,
        limits: Limits | None = None,
        busy: Busy | None = None,
        load: Load | None = None,
    ) -> None:
        self._leaders = leaders
        self._groups = groups
        self._puller = puller
        self._cluster = cluster
        self._limits = limits or Limits()
        self._busy = busy or Busy(self._limits)
        self._held = Held(self._limits.replies_bytes_max)
        self._writing = WritingRoom(
            self._limits.pulls_bytes_max,
            timeout_ms=self._limits.reader_timeout_ms,
            patience_ms=self._limits.reader_patience_ms,
        )
        self._load = load or Load()
        self.streams = 0
        """Push streams open now."""
        self.initial_streams = 0
        """Streams of initial values open now."""
        self.bare_replies = 0
        """Replies whose weights found no room."""

    def handlers(self, calls: Calls) -> grpc.GenericRpcHandler:
        methods = {
            "PushPull": calls.stream(self._push_pull),
            "Initialize": calls.stream(self._initialize),
            "Pull": calls.server_stream(pb.PullRequest, self._pull, bounded=self._check_pull_bytes),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def gauges(self) -> dict[str, float]:
        """What is held for readers now, and the most there ever was."""
        return {
            "push_streams": self.streams,
            "pulls": self._puller.pulls,
            "replies_bytes": self._held.bytes,
            "replies_bytes_most": self._held.bytes_most,
            "pulls_bytes": self._writing.bytes,
            "pulls_bytes_most": self._writing.bytes_most,
            "replies_without_weights": self.bare_replies,
        }

    # --- pushes

    async def _push_pull(self, context: Context) -> None:
        # Read first: a client that is still writing may miss why it was refused.
        hello = await self._hello(context)
        if self.streams >= self._limits.streams_max:
            raise self._busy.refusal(f"{self.streams} push streams are open at this node, its bound")
        self.streams += 1
        try:
            await self._stream(context, hello, lambda leader, hello, outbox: leader.open_stream(hello, outbox))
        finally:
            self.streams -= 1

    async def _initialize(self, context: Context) -> None:
        hello = await self._hello(context)
        if self.initial_streams >= self._limits.initial_streams_max:
            raise self._busy.refusal(f"{self.initial_streams} models are given values at this node, its bound")
        self.initial_streams += 1
        try:
            await self._stream(context, hello, lambda leader, hello, outbox: leader.open_initialization(hello, outbox))
        finally:
            self.initial_streams -= 1

    async def _stream(self, context: Context, hello: Hello, opened: Open) -> None:
        outbox = Outbox(self._held, self._limits)
        try:
            stream = opened(self._leader(hello), hello, outbox)
        except Refusal as refusal:
            raise self._complete(refusal) from None
        load = self._load.of(hello.group)
        reader = asyncio.create_task(self._read(context, stream, outbox, load), name="push stream")
        try:
            await self._write(context, outbox, load)
        finally:
            self.bare_replies += outbox.bare
            outbox.close()
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

    async def _read(self, context: Context, stream: Stream, outbox: Outbox, load: GroupLoad) -> None:
        try:
            while (data := await context.read()) is not grpc.aio.EOF:
                frame = decode_push(data)
                del data
                if frame.hello is not None:
                    raise invalid("hello", "one hello, in the first frame", "another one")
                admitted = asyncio.Event()
                outbox.unanswered += 1
                load.pushes += 1
                load.pushed_bytes += len(frame.payload)
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

    async def _write(self, context: Context, outbox: Outbox, load: GroupLoad) -> None:
        while True:
            while (frame := outbox.next()) is not None:
                try:
                    async with asyncio.timeout(self._limits.reader_timeout_ms / 1000):
                        await context.write(encode_block(frame))
                except TimeoutError:
                    raise self._busy.not_reading(self._limits.reader_timeout_ms) from None
                load.returned_bytes += len(frame.payload)
                outbox.written()
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

    def _check_pull_bytes(self, data: bytes) -> None:
        """Before it is parsed: a list of a million blocks would keep the loop from its votes."""
        most = self._limits.pull_blocks_max
        if len(data) > PULL_REQUEST_BYTES + PULL_BLOCK_BYTES * most:
            raise invalid("blocks", f"at most {most}", f"a request of {len(data)} bytes")

    async def _pull(self, request: pb.PullRequest, context: Context) -> None:
        if request.cluster != self._cluster:
            raise Refusal(Reason.WRONG_CLUSTER, "the request is for another cluster", field="cluster")
        which = request.WhichOneof("want")
        if which is None:
            raise invalid("want", "version or min_version", "neither")
        if len(request.blocks) > self._limits.pull_blocks_max:
            raise invalid("blocks", f"at most {self._limits.pull_blocks_max}", f"{len(request.blocks)} of them")
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
                if_newer_than=request.if_newer_than if request.HasField("if_newer_than") else None,
                codec=enum_value(Codec, "codec", request.codec or Codec.FP32),
                part=request.part,
            )
        )
        async with contextlib.aclosing(self._puller.frames(wanted, context.time_remaining())) as frames:
            async for frame in frames:
                # A group that is served is hosted here: so many counts there are, whatever is asked for. Before the
                # write: whoever has all that it asked for breaks off, sometimes in the middle of the last one.
                load = self._load.of(wanted.group)
                load.pulls += 1
                load.pulled_bytes += len(frame.payload)
                try:
                    async with self._writing.room(len(frame.payload)), self._writing.write():
                        await context.write(encode_block(frame))
                except TimeoutError:
                    raise self._busy.not_reading(self._limits.reader_patience_ms) from None
                except NoRoom:
                    raise self._busy.refusal("as many blocks wait to be written to pulls as may") from None
