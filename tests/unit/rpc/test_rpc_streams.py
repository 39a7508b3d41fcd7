"""The two loops of a push stream, against a fake call and a fake leader: back-pressure, endings, half-close."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import grpc
import grpc.aio
import pytest

from paramserver.observe.counters import Counters
from paramserver.rpc.calls import Calls
from paramserver.rpc.data import DataService
from paramserver.rpc.freshness import Freshness
from paramserver.rpc.groups import Groups
from paramserver.rpc.outbox import REPLIES_MAX
from paramserver.rpc.pull import Puller
from paramserver.wire.errors import ERROR_METADATA_KEY, Reason, Refusal
from paramserver.wire.frames import (
    BlockFrame,
    BlockStatus,
    Hello,
    PushFrame,
    PushKind,
    decode_block,
    encode_push,
)

CLUSTER = b"c" * 16


class Call:
    """A client's end: what it sends, what it reads, how it was ended."""

    def __init__(self) -> None:
        self.sent: asyncio.Queue[Any] = asyncio.Queue()
        self.received: list[BlockFrame] = []
        self.reads = asyncio.Event()
        self.reads.set()
        self.status: grpc.StatusCode | None = None
        self.detail = b""
        self.frames_read = 0

    def send(self, frame: PushFrame) -> None:
        self.sent.put_nowait(encode_push(frame))

    def finish(self) -> None:
        self.sent.put_nowait(grpc.aio.EOF)

    # --- what a handler calls

    async def read(self) -> Any:
        data = await self.sent.get()
        self.frames_read += 1
        return data

    async def write(self, data: bytes) -> None:
        await self.reads.wait()
        self.received.append(decode_block(data))

    async def abort(self, code: grpc.StatusCode, details: str, metadata: tuple[tuple[str, bytes], ...]) -> None:
        self.status, self.detail = code, dict(metadata)[ERROR_METADATA_KEY]
        raise grpc.aio.AbortError(details)


class FakeStream:
    """Answers each frame at once, or holds it."""

    def __init__(self, sink: Any) -> None:
        self.sink = sink
        self.holding = False
        self.held: Callable[[], None] | None = None
        self.closed = False

    def offer(self, frame: PushFrame, admitted: Callable[[], None]) -> None:
        if self.holding:
            self.held = admitted
            return
        admitted()
        status = BlockStatus.APPLIED
        self.sink.reply(BlockFrame(block=frame.block, step=frame.step, version=frame.step + 1, status=status))

    def close(self) -> None:
        self.closed = True


class FakeLeader:
    def __init__(self) -> None:
        self.stream: FakeStream | None = None
        self.refusal: Refusal | None = None

    def open_stream(self, hello: Hello, sink: Any) -> FakeStream:
        if self.refusal is not None:
            raise self.refusal
        self.stream = FakeStream(sink)
        sink.reply(BlockFrame(block=0, step=0, version=0, status=BlockStatus.STREAM_OPEN))
        return self.stream


class World:
    def __init__(self) -> None:
        self.leader, self.call, self.counters = FakeLeader(), Call(), Counters()
        groups = Groups(node=1, addresses={1: "a:1", 2: "b:2"}, layout={})
        leaders: Any = {1: self.leader}
        self.service = DataService(
            leaders=leaders, groups=groups, puller=Puller(groups, leaders, Freshness(groups)), cluster=CLUSTER
        )
        handler = Calls(self.counters).stream(self.service._push_pull)
        self.task = asyncio.create_task(handler.stream_stream(None, self.call))

    def hello(self) -> None:
        hello = Hello(cluster=CLUSTER, group=1, model=1, generation=1, placement_epoch=1, view=1, lease_epoch=1)
        self.call.send(PushFrame(hello=hello))

    def push(self, block: int) -> None:
        self.call.send(PushFrame(block=block, step=0, kind=PushKind.EMPTY))

    async def until(self, condition: Callable[[], object]) -> None:
        for _ in range(2000):
            if condition():
                return
            await asyncio.sleep(0)
        pytest.fail("it did not come to that")

    async def ended(self) -> str:
        with pytest.raises(grpc.aio.AbortError) as caught:
            await self.task
        return str(caught.value)


def run(story: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        world = World()
        try:
            async with asyncio.timeout(5):
                await story(world)
        finally:
            world.task.cancel()
            await asyncio.gather(world.task, return_exceptions=True)

    asyncio.run(whole())


def test_replies_come_in_order_and_half_close_waits_for_the_last() -> None:
    async def story(world: World) -> None:
        world.hello()
        for block in range(5):
            world.push(block)
        world.call.finish()
        await world.task
        assert world.call.received[0].status is BlockStatus.STREAM_OPEN
        assert [frame.block for frame in world.call.received[1:]] == list(range(5))
        assert world.leader.stream is not None
        assert world.leader.stream.closed
        assert world.service.streams == 0

    run(story)


def test_no_frame_is_read_before_the_one_before_was_admitted() -> None:
    async def story(world: World) -> None:
        world.hello()
        await world.until(lambda: world.call.received)
        stream = world.leader.stream
        assert stream is not None
        stream.holding = True
        for block in range(3):
            world.push(block)
        await world.until(lambda: stream.held)
        for _ in range(50):
            await asyncio.sleep(0)
        assert world.call.frames_read == 2, "the hello and one frame"
        stream.holding = False
        assert stream.held is not None
        stream.held()
        await world.until(lambda: world.call.frames_read == 4)

    run(story)


def test_a_client_that_does_not_read_is_not_read_from() -> None:
    async def story(world: World) -> None:
        world.hello()
        await world.until(lambda: world.call.received)
        world.call.reads.clear()
        for block in range(10 * REPLIES_MAX):
            world.push(block)
        for _ in range(20 * REPLIES_MAX):
            await asyncio.sleep(0)
        assert world.call.frames_read <= REPLIES_MAX + 3
        world.call.reads.set()
        await world.until(lambda: len(world.call.received) == 10 * REPLIES_MAX + 1)

    run(story)


def test_replies_made_before_the_end_still_go_out() -> None:
    async def story(world: World) -> None:
        world.hello()
        world.push(0)
        await world.until(lambda: len(world.call.received) == 2)
        stream = world.leader.stream
        assert stream is not None
        stream.sink.reply(BlockFrame(block=7, step=0, version=1, status=BlockStatus.APPLIED))
        stream.sink.end(Refusal(Reason.VIEW_CHANGED, "view 2 now", view=2))
        await world.ended()
        assert world.call.received[-1].block == 7
        assert world.call.status is grpc.StatusCode.FAILED_PRECONDITION
        assert Refusal.from_detail("", "", world.call.detail).view == 2
        assert stream.closed
        assert world.counters.all() == {"refused_view_changed": 1}

    run(story)


def test_a_refused_hello_ends_the_stream() -> None:
    async def story(world: World) -> None:
        world.leader.refusal = Refusal(Reason.NOT_OPEN, "no values yet")
        world.hello()
        assert await world.ended() == "no values yet"
        assert world.call.status is grpc.StatusCode.UNAVAILABLE

    run(story)


def test_a_defect_shows_nothing_of_itself(caplog: pytest.LogCaptureFixture) -> None:
    async def story(world: World) -> None:
        world.hello()
        await world.until(lambda: world.call.received)
        world.leader.stream.offer = None  # type: ignore[union-attr, method-assign, assignment]
        world.push(0)
        said = await world.ended()
        assert world.call.status is grpc.StatusCode.INTERNAL
        assert "NoneType" not in said

    run(story)
    assert "NoneType" in caplog.text


def test_rubbish_within_a_stream() -> None:
    async def story(world: World) -> None:
        world.hello()
        await world.until(lambda: world.call.received)
        world.call.sent.put_nowait(b"\xff\xff")
        await world.ended()
        assert world.call.status is grpc.StatusCode.INVALID_ARGUMENT

    run(story)


def test_a_second_hello() -> None:
    async def story(world: World) -> None:
        world.hello()
        world.hello()
        assert "hello" in await world.ended()

    run(story)
