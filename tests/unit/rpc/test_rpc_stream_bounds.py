"""Bounds of the data service, at a fake call: streams, hellos, readers that take nothing; what they held comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from paramserver.observe.counters import Counters
from paramserver.observe.load import Load
from paramserver.rpc import calls as calls_module
from paramserver.rpc import data as data_module
from paramserver.rpc.calls import Calls
from paramserver.rpc.data import PULL_BLOCK_BYTES, PULL_REQUEST_BYTES, DataService
from paramserver.rpc.groups import Groups
from paramserver.rpc.limits import Limits
from paramserver.v1 import paramserver_pb2 as pb
from paramserver.wire.codecs import Codec
from paramserver.wire.errors import ERROR_METADATA_KEY, Reason, Refusal
from paramserver.wire.frames import BlockFrame, BlockStatus, Hello, PushFrame, encode_push

CLUSTER = b"c" * 16
BLOCK = 4096


def weights() -> memoryview:
    return np.zeros(BLOCK // 4, np.float32).data.cast("B")


def applied(payload: memoryview) -> BlockFrame:
    return BlockFrame(block=0, step=0, version=1, status=BlockStatus.APPLIED, payload=payload)


class Call:
    """A client that says hello and reads while `reads` is set."""

    def __init__(self, *, hello: bool = True, reads: bool = True) -> None:
        self.hello = hello
        self.frames: list[PushFrame] = []
        """Sent after the hello."""
        self.reads = asyncio.Event()
        if reads:
            self.reads.set()
        self.written = 0
        self.opened = asyncio.Event()
        self.refusal: Refusal | None = None

    async def read(self) -> bytes:
        if self.hello:
            self.hello = False
            return encode_push(PushFrame(hello=hello()))
        if self.frames:
            return encode_push(self.frames.pop(0))
        await asyncio.Event().wait()
        raise AssertionError

    async def write(self, _: bytes) -> None:
        await self.reads.wait()
        self.written += 1
        self.opened.set()

    async def abort(self, code: grpc.StatusCode, details: str, metadata: Any) -> None:
        self.refusal = Refusal.from_detail(code.name, details, dict(metadata)[ERROR_METADATA_KEY])
        raise grpc.aio.AbortError(details)

    def time_remaining(self) -> float:
        return 10.0


def hello() -> Hello:
    return Hello(cluster=CLUSTER, group=1, model=1, generation=1, placement_epoch=1, view=1, lease_epoch=1)


class Stream:
    """Answers each frame with weights, at once."""

    def __init__(self, sink: Any) -> None:
        self.closed = False
        self._sink = sink

    def offer(self, frame: PushFrame, admitted: Callable[[], None]) -> None:
        admitted()
        self._sink.reply(applied(weights()))

    def close(self) -> None:
        self.closed = True


class Leader:
    """Of pushes and of initial values."""

    def __init__(self) -> None:
        self.sinks: list[Any] = []
        self.streams: list[Stream] = []

    def open_stream(self, _: Hello, sink: Any) -> Stream:
        self.sinks.append(sink)
        self.streams.append(Stream(sink))
        sink.reply(BlockFrame(block=0, step=0, version=0, status=BlockStatus.STREAM_OPEN))
        return self.streams[-1]

    open_initialization = open_stream


class Puller:
    """Each pull is answered with one block."""

    pulls = 0

    async def frames(self, _: Any, __: float | None) -> AsyncGenerator[BlockFrame, None]:
        yield applied(weights())


class World:
    def __init__(self, **limits: int) -> None:
        self.leader = Leader()
        self.counters, self.load = Counters(), Load()
        self.calls = Calls(self.counters)
        groups = Groups(node=1, addresses={1: "a:1"}, layout={})
        leaders: Any = {1: self.leader}
        puller: Any = Puller()
        self.service = DataService(
            leaders=leaders, groups=groups, puller=puller, cluster=CLUSTER, limits=Limits(**limits), load=self.load
        )
        self.tasks: list[asyncio.Task[None]] = []

    def push(self, call: Call, method: str = "PushPull") -> asyncio.Task[None]:
        handler = self.service._push_pull if method == "PushPull" else self.service._initialize
        return self._start(self.calls.stream(handler).stream_stream(None, call))

    def pull(self, call: Call) -> asyncio.Task[None]:
        request = pb.PullRequest(cluster=CLUSTER, group=1, model=1, generation=1, placement_epoch=1, version=1)
        method = self.calls.server_stream(pb.PullRequest, self.service._pull)
        return self._start(method.unary_stream(request.SerializeToString(), call))

    def _start(self, work: Any) -> asyncio.Task[None]:
        self.tasks.append(asyncio.ensure_future(work))
        return self.tasks[-1]


async def ended(task: asyncio.Task[None], call: Call) -> Refusal:
    with pytest.raises(grpc.aio.AbortError):
        await task
    assert call.refusal is not None
    return call.refusal


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def run(story: Callable[[World], Coroutine[Any, Any, None]], **limits: int) -> None:
    async def whole() -> None:
        world = World(**limits)
        try:
            async with asyncio.timeout(5):
                await story(world)
        finally:
            for task in world.tasks:
                task.cancel()
            await asyncio.gather(*world.tasks, return_exceptions=True)

    asyncio.run(whole())


@pytest.mark.parametrize(
    ("method", "words"), [("PushPull", "1 push streams are open"), ("Initialize", "1 models are given values")]
)
def test_streams_of_a_node_are_bounded_and_one_that_ends_makes_room(method: str, words: str) -> None:
    async def story(world: World) -> None:
        first, second, third = Call(), Call(), Call()
        begun = world.push(first, method)
        await first.opened.wait()
        refusal = await ended(world.push(second, method), second)
        assert words in refusal.message
        assert (refusal.reason, refusal.code) == (Reason.BUSY, "RESOURCE_EXHAUSTED")
        assert refusal.retry_after_ms == 70
        begun.cancel()
        await asyncio.gather(begun, return_exceptions=True)
        world.push(third, method)
        await third.opened.wait()
        assert world.leader.streams[0].closed

    run(story, streams_max=1, initial_streams_max=1, retry_after_ms=70)


def test_a_stream_that_says_nothing_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_module, "HELLO_TIMEOUT_MS", 10)

    async def story(world: World) -> None:
        call = Call(hello=False)
        refusal = await ended(world.push(call), call)
        assert refusal.code == "DEADLINE_EXCEEDED"
        assert "no hello within 10 ms" in refusal.message

    run(story)


def test_a_worker_that_takes_none_of_its_replies_is_ended_and_they_are_let_go() -> None:
    async def story(world: World) -> None:
        call = Call(reads=False)
        task = world.push(call)
        await turns()
        world.leader.sinks[0].reply(applied(weights()))
        assert world.service.gauges()["replies_bytes"] == BLOCK
        refusal = await ended(task, call)
        assert (refusal.reason, refusal.hint) == (Reason.BUSY, "read answers as they come")
        assert refusal.retry_after_ms > 0
        assert world.leader.streams[0].closed
        gauges = world.service.gauges()
        assert (gauges["replies_bytes"], gauges["push_streams"]) == (0, 0)

    run(story, reader_timeout_ms=20)


def test_replies_of_a_worker_that_is_gone_are_let_go() -> None:
    async def story(world: World) -> None:
        task = world.push(Call(reads=False))
        await turns()
        world.leader.sinks[0].reply(applied(weights()))
        assert world.service.gauges()["replies_bytes"] == BLOCK
        task.cancel()  # what gRPC does then
        await asyncio.gather(task, return_exceptions=True)
        assert world.service.gauges()["replies_bytes"] == 0

    run(story)


def test_pulls_that_are_not_read_hold_their_room_and_others_are_turned_away_with_a_time_to_retry() -> None:
    async def story(world: World) -> None:
        slow, next_one, third = (Call(reads=False) for _ in range(3))
        first, second = world.pull(slow), world.pull(next_one)
        await turns()
        assert world.service.gauges()["pulls_bytes"] == BLOCK, "one is written, one waits"
        refusal = await ended(world.pull(third), third)
        assert (refusal.reason, refusal.code) == (Reason.BUSY, "RESOURCE_EXHAUSTED")
        assert refusal.retry_after_ms > 0
        next_one.reads.set()
        stood_still = await ended(first, slow)
        assert stood_still.hint == "read answers as they come"
        await second
        assert next_one.written == 1
        assert world.service.gauges()["pulls_bytes"] == 0

    run(story, pulls_bytes_max=BLOCK, reader_timeout_ms=1000, reader_patience_ms=20)


def test_what_passes_is_counted() -> None:
    async def story(world: World) -> None:
        call = Call()
        call.frames = [PushFrame(block=block, codec=Codec.BF16, payload=bytes(BLOCK // 2)) for block in range(3)]
        world.push(call)
        await turns()
        await world.pull(Call())
        load = world.load.of(1)
        assert (load.pushes, load.pushed_bytes, load.returned_bytes) == (3, 3 * BLOCK // 2, 3 * BLOCK)
        assert (load.pulls, load.pulled_bytes) == (1, BLOCK)

    run(story)


def test_a_pull_of_a_million_keys_is_not_even_parsed() -> None:
    async def story(world: World) -> None:
        method = world.calls.server_stream(
            pb.PullRequest, world.service._pull, bounded=world.service._check_pull_bytes
        ).unary_stream
        most, call = PULL_REQUEST_BYTES + PULL_BLOCK_BYTES * 3, Call()
        with pytest.raises(grpc.aio.AbortError):
            await method(b"\xff" * (most + 1), call)
        assert call.refusal is not None
        assert (call.refusal.field, call.refusal.expected) == ("blocks", "at most 3")
        with pytest.raises(grpc.aio.AbortError):
            await method(b"\xff" * most, call)
        assert call.refusal.field == "request", "no longer than a pull may be, and no message"

    run(story, pull_blocks_max=3)


def test_no_unary_call_outlives_the_servers_own_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls_module, "SERVER_DEADLINE_MS", 10)

    async def story(world: World) -> None:
        async def never(*_: Any) -> Any:
            await asyncio.Event().wait()

        call = Call()
        with pytest.raises(grpc.aio.AbortError):
            await world.calls.unary(pb.DescribeModelRequest, never).unary_unary(b"", call)
        assert call.refusal is not None
        assert call.refusal.code == "DEADLINE_EXCEEDED"

    run(story)
