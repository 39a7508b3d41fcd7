"""What a node holds for those who read, and whom it serves: bounds, what happens at them, and that room comes back."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import grpc
import numpy as np
import pytest

from paramserver.observe.counters import Counters
from paramserver.rpc import calls as calls_module
from paramserver.rpc.admission import Admission, Busy, sever
from paramserver.rpc.calls import Calls
from paramserver.rpc.limits import Limits
from paramserver.rpc.outbox import REPLIES_MAX, Outbox
from paramserver.rpc.room import Held, NoRoom, WritingRoom
from paramserver.v1 import paramserver_pb2 as pb
from paramserver.wire.errors import Reason, Refusal
from paramserver.wire.frames import BlockFrame, BlockStatus

BLOCK = 4096


def weights(fill: int = 0) -> memoryview:
    return np.full(BLOCK // 4, fill, np.float32).data.cast("B")


def applied(block: int, payload: memoryview | bytes) -> BlockFrame:
    return BlockFrame(block=block, step=0, version=1, status=BlockStatus.APPLIED, crc=7, payload=payload)


def test_limits_are_checked() -> None:
    assert Limits().validate() == []
    assert [problem.field for problem in Limits(calls_max=0, reader_timeout_ms=-1).validate()] == [
        "calls_max",
        "reader_timeout_ms",
    ]


# --- replies


def test_a_buffer_that_many_wait_for_counts_once() -> None:
    held = Held(2 * BLOCK)
    shared, own = weights(1), weights(2)
    outboxes = [Outbox(held, Limits()) for _ in range(5)]
    for outbox in outboxes:
        outbox.reply(applied(0, shared))
    assert held.bytes == BLOCK
    outboxes[0].reply(applied(1, own))
    assert held.bytes == held.bytes_most == 2 * BLOCK
    for outbox in outboxes:
        outbox.written()
    assert held.bytes == BLOCK
    outboxes[0].close()
    assert held.bytes == 0


def test_beyond_its_bound_a_slow_reader_gets_answers_without_weights() -> None:
    """Acknowledged all the same: the worker pulls what it lacks."""
    held = Held(100 * BLOCK)
    outbox = Outbox(held, Limits(stream_replies_bytes_max=3 * BLOCK))
    for block in range(10):
        outbox.reply(applied(block, weights(block)))
    assert held.bytes == 3 * BLOCK
    assert outbox.bare == 7
    seen = []
    while (frame := outbox.next()) is not None:
        seen.append((frame.block, len(frame.payload), frame.crc))
        outbox.written()
    assert seen == [(block, BLOCK, 7) if block < 3 else (block, 0, 0) for block in range(10)]
    assert held.bytes == 0


def test_one_slow_reader_takes_nothing_from_others_and_the_first_reply_always_goes_whole() -> None:
    held = Held(2 * BLOCK)
    slow, quick = Outbox(held, Limits()), Outbox(held, Limits())
    for block in range(4):
        slow.reply(applied(block, weights(block)))
    quick.reply(applied(9, weights(9)))
    frame = quick.next()
    assert frame is not None
    assert len(frame.payload) == BLOCK, "nothing else waits there: it is about to be written"
    quick.reply(applied(10, weights(10)))
    quick.written()
    second = quick.next()
    assert second is not None
    assert len(second.payload) == 0
    assert held.bytes == 2 * BLOCK


def test_frames_are_not_read_while_many_replies_wait() -> None:
    outbox = Outbox(Held(BLOCK), Limits())
    for block in range(REPLIES_MAX):
        assert outbox.room.is_set()
        outbox.reply(applied(block, b""))
    assert not outbox.room.is_set()
    outbox.written()
    assert outbox.room.is_set()


# --- room to write in


def run(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        async with asyncio.timeout(10):
            await story()

    asyncio.run(whole())


class Pull:
    """Writes one block to a reader that takes it when `read` is set."""

    def __init__(self, room: WritingRoom, size: int = BLOCK) -> None:
        self.read = asyncio.Event()
        self.writes = False
        self.ended = ""
        self.task = asyncio.create_task(self._run(room, size))

    async def _run(self, room: WritingRoom, size: int) -> None:
        try:
            async with room.room(size), room.write():
                self.writes = True
                await self.read.wait()
                self.ended = "read"
        except TimeoutError:
            self.ended = "too slow"
        except NoRoom:
            self.ended = "no room"


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_pulls_wait_in_order_for_room() -> None:
    async def story() -> None:
        room = WritingRoom(2 * BLOCK, timeout_ms=5000, patience_ms=5000)
        pulls = [Pull(room) for _ in range(4)]
        await turns()
        assert [pull.writes for pull in pulls] == [True, True, False, False]
        assert (room.bytes, room.waiting) == (2 * BLOCK, 2 * BLOCK)
        pulls[1].read.set()
        await turns()
        assert [pull.writes for pull in pulls] == [True, True, True, False]
        pulls[3].task.cancel()
        for pull in pulls:
            pull.read.set()
        await asyncio.gather(*(pull.task for pull in pulls), return_exceptions=True)
        assert (room.bytes, room.waiting) == (0, 0)
        assert room.bytes_most == 2 * BLOCK

    run(story)


def test_room_that_was_given_to_a_pull_that_is_ended_goes_to_the_next() -> None:
    async def story() -> None:
        room = WritingRoom(2 * BLOCK, timeout_ms=5000, patience_ms=5000)
        async with room.room(2 * BLOCK):
            ended = Pull(room, 2 * BLOCK)
            await turns()
        assert (room.bytes, ended.writes) == (2 * BLOCK, False), "it was given the room, and has not had its turn yet"
        ended.task.cancel()
        last = Pull(room, 2 * BLOCK)
        await turns()
        assert last.writes
        last.read.set()
        await last.task
        assert (room.bytes, room.waiting) == (0, 0)

    run(story)


def test_a_small_block_does_not_overtake_a_large_one_that_waits() -> None:
    async def story() -> None:
        room = WritingRoom(3 * BLOCK, timeout_ms=5000, patience_ms=5000)
        first, large, small = Pull(room, 2 * BLOCK), Pull(room, 2 * BLOCK), Pull(room, BLOCK)
        await turns()
        assert (first.writes, large.writes, small.writes) == (True, False, False)
        first.read.set()
        await turns()
        assert large.writes
        assert small.writes
        for pull in (large, small):
            pull.read.set()
            await pull.task
        assert room.bytes == 0

    run(story)


def test_as_much_waits_as_may_be_written_and_the_rest_is_turned_away() -> None:
    async def story() -> None:
        room = WritingRoom(BLOCK, timeout_ms=5000, patience_ms=5000)
        pulls = [Pull(room) for _ in range(3)]
        await turns()
        assert [pull.ended for pull in pulls] == ["", "", "no room"]
        for pull in pulls:
            pull.read.set()
        await asyncio.gather(*(pull.task for pull in pulls))
        assert (room.bytes, room.waiting) == (0, 0)

    run(story)


def test_a_block_larger_than_the_room_goes_alone() -> None:
    async def story() -> None:
        pull = Pull(WritingRoom(1, timeout_ms=5000, patience_ms=5000))
        await turns()
        assert pull.writes
        pull.read.set()
        await pull.task

    run(story)


def test_a_reader_that_stands_still_gives_way_when_others_wait() -> None:
    async def story() -> None:
        room = WritingRoom(BLOCK, timeout_ms=60_000, patience_ms=20)
        still = Pull(room)
        await turns()
        waiting = Pull(room)
        await still.task
        assert still.ended == "too slow"
        waiting.read.set()
        await waiting.task
        assert waiting.ended == "read"

    run(story)


def test_a_reader_that_stands_still_is_ended_though_nobody_waits() -> None:
    async def story() -> None:
        room = WritingRoom(BLOCK, timeout_ms=20, patience_ms=20)
        still = Pull(room)
        await still.task
        assert still.ended == "too slow"
        assert room.bytes == 0

    run(story)


# --- who is served


def test_calls_and_connections_beyond_their_bounds_are_refused_with_a_time_to_retry() -> None:
    async def story() -> None:
        bounds_of_admission(Admission(Limits(calls_max=3, connections_max=2, retry_after_ms=70)))

    run(story)


def test_the_time_to_retry_grows_until_as_many_come_as_are_wanted_and_falls_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]

    async def story() -> None:
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now[0])
        busy = Busy(Limits(retry_after_ms=100, retry_after_ms_max=5000, refusals_per_s=100))
        clients, rates = 400, []
        for _ in range(20):
            # Each of them comes again after the time it was told.
            rate = clients * 1000 // busy.retry_after_ms
            rates.append(rate)
            for _ in range(rate):
                busy.refusal("no")
            now[0] += 1.0
        assert rates[0] == 4000
        assert 80 <= rates[-1] <= 125
        assert busy.retry_after_ms == pytest.approx(4000, rel=0.2)
        for _ in range(3):
            busy.refusal("no")
            now[0] += 60.0
        assert busy.retry_after_ms == 100
        for _ in range(3):
            for _ in range(100_000):
                busy.refusal("no")
            now[0] += 1.0
        assert busy.retry_after_ms == 5000
        monkeypatch.undo()

    asyncio.run(story())


def bounds_of_admission(admission: Admission) -> None:
    for peer in ("a", "b", "a"):
        admission.enter(peer)
    for what in ("a", "c"):
        with pytest.raises(Refusal, match="3 calls") as caught:
            admission.enter(what)
        assert (caught.value.reason, caught.value.retry_after_ms) == (Reason.BUSY, 70)
        assert caught.value.code == "RESOURCE_EXHAUSTED"
    admission.leave("a")
    with pytest.raises(Refusal, match="2 connections"):
        admission.enter("c")
    admission.leave("a")
    admission.enter("c")
    assert (admission.calls, admission.connections) == (2, 2)


class Context:
    """Of a call whose client reads its end only if `reads`."""

    def __init__(self, *, reads: bool = True) -> None:
        self.status: grpc.StatusCode | None = None
        self.reads = reads

    def peer(self) -> str:
        return "ipv4:127.0.0.1:9"

    async def abort(self, code: grpc.StatusCode, details: str, metadata: Any) -> None:
        self.status = code
        if not self.reads:
            await asyncio.Event().wait()
        raise grpc.aio.AbortError(details)


def test_a_call_beyond_the_bound_is_refused_before_its_handler_begins() -> None:
    async def story() -> None:
        begun: list[bytes] = []
        over = asyncio.Event()

        async def handler(request: Any, context: Any) -> Any:
            begun.append(request.name)
            await over.wait()
            return pb.ModelDescription()

        counters, admission = Counters(), Admission(Limits(calls_max=1))
        method = Calls(counters, admission).unary(pb.DescribeModelRequest, handler).unary_unary
        first = asyncio.create_task(method(pb.DescribeModelRequest(name="first").SerializeToString(), Context()))
        await turns()
        refused = Context()
        with pytest.raises(grpc.aio.AbortError, match="1 calls are served"):
            await method(pb.DescribeModelRequest(name="second").SerializeToString(), refused)
        assert refused.status is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert begun == ["first"]
        over.set()
        await first
        assert admission.calls == 0
        assert counters.all() == {"refused_busy": 1}

    run(story)


def test_a_client_that_does_not_read_the_end_loses_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    severed: list[str] = []
    monkeypatch.setattr(calls_module, "sever", severed.append)

    async def handler(_: Any) -> None:
        raise Refusal(Reason.BUSY, "too slow")

    async def story() -> None:
        counters, admission = Counters(), Admission(Limits())
        method = Calls(counters, admission, part_ms=20).stream(handler).stream_stream
        with pytest.raises(asyncio.CancelledError):
            await method(None, Context(reads=False))
        assert severed == ["ipv4:127.0.0.1:9"]
        assert admission.calls == 0
        assert counters.all() == {"refused_busy": 1, "connections_closed_unread": 1}

    run(story)


def test_a_refusal_whose_client_is_gone_is_no_defect() -> None:
    """gRPC logged a traceback (ExecuteBatchError) for each of them."""

    class Gone(Context):
        async def abort(self, code: grpc.StatusCode, details: str, metadata: Any) -> None:
            raise grpc.aio.InternalError("Failed grpc_call_start_batch: 8")

    async def handler(_: Any) -> None:
        raise Refusal(Reason.BUSY, "too slow")

    async def story() -> None:
        counters, admission = Counters(), Admission(Limits())
        with pytest.raises(asyncio.CancelledError):
            await Calls(counters, admission).stream(handler).stream_stream(None, Gone())
        assert admission.calls == 0
        assert counters.all() == {"refused_busy": 1}

    run(story)


@pytest.mark.parametrize(("family", "host", "name"), [(socket.AF_INET, "127.0.0.1", "ipv4:127.0.0.1:{}")])
def test_severing_ends_that_connection_and_no_other(family: int, host: str, name: str) -> None:
    with socket.socket(family) as listening:
        listening.bind((host, 0))
        listening.listen()
        with (
            socket.create_connection(listening.getsockname()) as one,
            socket.create_connection(listening.getsockname()) as other,
        ):
            ends = [listening.accept()[0] for _ in range(2)]
            one.settimeout(5)
            assert sever(name.format(one.getsockname()[1]))
            assert one.recv(1) == b"", "the other end is gone"
            ends[1].sendall(b"x")
            assert other.recv(1) == b"x"
            assert not sever("unix:nowhere")
            assert not sever("ipv4:127.0.0.1:1")
            for end in ends:
                end.close()
