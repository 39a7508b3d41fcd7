"""Pulls that must be new (RULES R2, R3) at one node: what is asked of the group before anything is served, what is
served without a quorum and for how long, what is refused and how the refusal reads."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from consensus.core.interface import Configuration
from consensus.runtime.interface import ReadIndex, Refused
from paramserver.rpc.freshness import Freshness
from paramserver.rpc.groups import Groups, Hosted
from paramserver.rpc.pull import BOUNDED_MS_MAX, Puller, Wanted, checked
from paramserver.shard.forms import Form, Forms
from paramserver.shard.reads import BlockRead, Value
from paramserver.wire.checksum import crc32c
from paramserver.wire.codecs import Codec
from paramserver.wire.errors import Reason, Refusal
from paramserver.wire.frames import BlockFrame, BlockStatus, decode_block, encode_block

GROUP, REPLICA = 1, 2
NO_LEADER = Refused(0, 4, reason="no leader confirms it now; ask again")


@dataclass
class Core:
    applied_index: int = 10
    forgetful: bool = False


@dataclass
class Status:
    core: Core | None = field(default_factory=Core)
    problem: str = ""
    distrusted: str = ""


class Handle:
    """Reads wait until the test answers them, unless `answer` is set."""

    def __init__(self) -> None:
        self.current = Status()
        self.asked: list[Callable[[Any], None]] = []
        self.answer: Any = None

    def status(self) -> Status:
        return self.current

    def leader(self) -> tuple[int, int, int]:
        return 0, 0, 4

    def read_index(self, done: Callable[[Any], None]) -> None:
        self.asked.append(done)
        if self.answer is not None:
            done(self.answer)


class Waiter:
    def __init__(self, version: int, behind: int) -> None:
        self.version, self.behind = version, behind
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Replica:
    """Two blocks, at `version`; a read of a higher one waits for `wake`."""

    term = 4
    leading_now = False

    def __init__(self) -> None:
        self.version = 5
        self.reads: list[BlockRead] = []
        self.wake: Callable[[], None] | None = None
        self.waiters: list[Waiter] = []

    def read(self, want: BlockRead, wake: Callable[[], None]) -> Any:
        self.reads.append(want)
        wanted = want.version if want.version is not None else want.min_version or 0
        if wanted > self.version:
            self.wake = wake
            self.waiters.append(Waiter(wanted, wanted - self.version))
            return self.waiters[-1]
        return Value(self.version, Forms(np.zeros(1, np.float32), 0))

    def encoded(self, value: Value, codec: Codec, done: Callable[[Form], None]) -> None:
        done(value.forms.make(codec))


class World:
    def __init__(self) -> None:
        self.now_s = 100.0
        self.handle, self.replica = Handle(), Replica()
        layout = {GROUP: Configuration((1, 2, 3))}
        self.groups = Groups(node=2, addresses={1: "a:1", 2: "b:2", 3: "c:3"}, layout=layout)
        handle: Any = self.handle
        self.groups.hosted[GROUP] = Hosted(GROUP, REPLICA, handle, None)
        leaders: Any = {GROUP: self.replica}
        self.freshness = Freshness(self.groups)
        self.puller = Puller(self.groups, leaders, self.freshness)

    def pull(
        self, *, blocks: tuple[int, ...] = (0,), version: int = 0, time_left_s: float | None = None, **how: Any
    ) -> AsyncGenerator[BlockFrame, None]:
        wanted = Wanted(
            group=GROUP, model=1, generation=1, placement_epoch=1, blocks=blocks, version=version, exact=False, **how
        )
        return self.puller.frames(checked(wanted), time_left_s)

    async def frame(self, **how: Any) -> BlockFrame:
        async with contextlib.aclosing(self.pull(**how)) as frames:
            return await anext(frames)

    async def refusal(self, **how: Any) -> Refusal:
        with pytest.raises(Refusal) as caught:
            await self.frame(**how)
        return caught.value


def run(story: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        world = World()
        loop: Any = asyncio.get_running_loop()
        beginning = loop.time()
        real = loop.time
        loop.time = lambda: world.now_s + real() - beginning  # the test moves it on
        async with asyncio.timeout(5):
            await story(world)

    asyncio.run(whole())


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


# --- linearizable -----------------------------------------------------------------------------------------------------


def test_a_linearizable_pull_serves_nothing_before_it_is_confirmed() -> None:
    async def story(world: World) -> None:
        pulled = asyncio.ensure_future(world.frame(linearizable=True))
        await turns()
        assert len(world.handle.asked) == 1
        assert not world.replica.reads
        world.now_s += 0.2
        world.replica.version = 6
        world.handle.asked[0](ReadIndex(10, age_ms=30))
        frame = await pulled
        assert frame.version == 6
        assert 230 <= frame.age_ms <= 300

    run(story)


def test_every_linearizable_pull_asks_anew_and_one_question_does_for_all_its_blocks() -> None:
    async def story(world: World) -> None:
        world.handle.answer = ReadIndex(10, age_ms=0)
        for _ in range(3):
            assert [frame.block async for frame in world.pull(blocks=(0, 1), linearizable=True)] == [0, 1]
        assert len(world.handle.asked) == 3

    run(story)


def test_a_linearizable_pull_is_not_answered_from_what_was_confirmed_before() -> None:
    async def story(world: World) -> None:
        world.handle.answer = ReadIndex(10, age_ms=0)
        await world.frame(bounded_ms=1000)
        world.handle.answer = NO_LEADER
        refusal = await world.refusal(linearizable=True)
        assert (refusal.reason, refusal.code) == (Reason.UNCONFIRMED, "UNAVAILABLE")
        assert refusal.retryable
        assert "group 1" in refusal.message
        assert "no leader confirms it" in refusal.message
        assert "majority" in refusal.hint
        assert refusal.retry_after_ms > 0
        assert world.puller.pulls == 0

    run(story)


def test_a_confirmation_that_does_not_come_ends_at_the_deadline_and_does_no_harm_later() -> None:
    async def story(world: World) -> None:
        refusal = await world.refusal(linearizable=True, time_left_s=0.01)
        assert refusal.reason is Reason.DEADLINE
        world.handle.asked[0](ReadIndex(10, age_ms=0))
        assert not world.replica.reads

    run(story)


def test_too_many_reads_is_busy() -> None:
    async def story(world: World) -> None:
        world.handle.answer = Refused(1, 4, busy=True, reason="too many reads wait")
        assert (await world.refusal(linearizable=True)).reason is Reason.BUSY
        assert (await world.refusal(bounded_ms=10)).reason is Reason.BUSY

    run(story)


# --- bounded ----------------------------------------------------------------------------------------------------------


def test_a_bounded_pull_lives_on_the_last_confirmation_and_says_how_old_it_is() -> None:
    async def story(world: World) -> None:
        world.handle.answer = ReadIndex(10, age_ms=30)
        first = await world.frame(bounded_ms=200)
        assert 30 <= first.age_ms <= 100
        world.now_s += 0.1
        second = await world.frame(bounded_ms=200)
        assert 130 <= second.age_ms <= 200
        assert len(world.handle.asked) == 1, "the second one needed no round"
        await world.frame(bounded_ms=120)
        assert len(world.handle.asked) == 2, "a shorter bound did"

    run(story)


def test_without_a_quorum_a_bounded_pull_is_answered_until_its_bound_has_passed() -> None:
    """FAULTS row 3."""

    async def story(world: World) -> None:
        world.handle.answer = ReadIndex(10, age_ms=0)
        await world.frame(linearizable=True)
        world.handle.answer = NO_LEADER
        world.now_s += 0.9
        frame = await world.frame(bounded_ms=1000)
        assert 900 <= frame.age_ms <= 1000
        world.now_s += 0.2
        refusal = await world.refusal(bounded_ms=1000)
        assert (refusal.reason, refusal.code, refusal.field) == (Reason.UNCONFIRMED, "UNAVAILABLE", "bounded_ms")
        assert "last confirmed 11" in refusal.message
        assert "the bound is 1000 ms" in refusal.message
        assert "majority" in refusal.hint

    run(story)


def test_what_was_never_confirmed_is_not_served_as_bounded() -> None:
    async def story(world: World) -> None:
        world.handle.answer = NO_LEADER
        assert "not confirmed before" in (await world.refusal(bounded_ms=BOUNDED_MS_MAX)).message
        assert not world.replica.reads

    run(story)


def test_an_answer_older_than_the_bound_is_refused() -> None:
    async def story(world: World) -> None:
        world.handle.answer = ReadIndex(10, age_ms=50)
        refusal = await world.refusal(bounded_ms=20)
        assert refusal.reason is Reason.UNCONFIRMED
        assert "longer bound" in refusal.hint

    run(story)


def test_a_bounded_pull_that_waited_for_a_version_is_confirmed_again_before_it_is_served() -> None:
    async def story(world: World) -> None:
        world.handle.answer = ReadIndex(10, age_ms=0)
        pulled = asyncio.ensure_future(world.frame(version=6, bounded_ms=500))
        await turns()
        assert world.replica.wake is not None
        world.now_s += 0.6
        world.replica.version = 6
        world.replica.wake()
        frame = await pulled
        assert len(world.handle.asked) == 2
        assert frame.age_ms <= 500

    run(story)


def test_a_slow_reader_gets_no_block_that_is_too_old() -> None:
    async def story(world: World) -> None:
        world.handle.answer = ReadIndex(10, age_ms=0)
        frames = world.pull(blocks=(0, 1), bounded_ms=500)
        await anext(frames)
        world.now_s += 0.6
        assert (await anext(frames)).age_ms <= 500
        assert len(world.handle.asked) == 2

    run(story)


# --- the replica underneath -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda world: setattr(world.handle.current, "distrusted", "its digest is odd"),
        lambda world: setattr(world.handle.current, "core", None),
        lambda world: setattr(world.handle.current.core, "applied_index", 9),
        lambda world: world.groups.hosted.update({GROUP: Hosted(GROUP, 70_000, world.handle, None)}),
    ],
    ids=["distrusted", "stopped", "older state", "another replica"],
)
def test_a_confirmation_speaks_of_one_state_only(change: Callable[[World], None]) -> None:
    async def story(world: World) -> None:
        world.handle.answer = ReadIndex(10, age_ms=0)
        await world.frame(bounded_ms=60_000)
        change(world)
        world.handle.answer = NO_LEADER
        await world.refusal(bounded_ms=60_000)
        assert len(world.replica.reads) == 1

    run(story)


def test_a_replica_that_is_rebuilt_serves_no_pull_at_all() -> None:
    async def story(world: World) -> None:
        world.handle.current.distrusted = "its digest is odd"
        refusal = await world.refusal()
        assert refusal.reason is Reason.DAMAGED
        assert "its digest is odd" in refusal.message

    run(story)


def test_a_replica_that_may_have_forgotten_serves_no_pull_at_all() -> None:
    async def story(world: World) -> None:
        world.handle.current.core = Core(forgetful=True)
        refusal = await world.refusal()
        assert refusal.reason is Reason.DAMAGED
        assert "may have forgotten" in refusal.message

    run(story)


def test_other_pulls_ask_nobody() -> None:
    async def story(world: World) -> None:
        frame = await world.frame()
        assert frame.age_ms == 0
        assert not world.handle.asked

    run(story)


def test_what_is_not_newer_is_not_sent_and_as_new_as_any_answer() -> None:
    async def story(world: World) -> None:
        for newest, status in ((4, BlockStatus.VALUE), (5, BlockStatus.NOT_NEWER), (6, BlockStatus.NOT_NEWER)):
            frame = await world.frame(if_newer_than=newest)
            assert (frame.status, frame.version) == (status, 5)
            assert bool(len(frame.payload)) == (status is BlockStatus.VALUE)
        asking = asyncio.ensure_future(world.frame(if_newer_than=5, linearizable=True))
        await asyncio.sleep(0)
        assert len(world.handle.asked) == 1, "a quorum is asked first, here too"
        asking.cancel()

    run(story)


def test_blocks_come_in_the_codec_that_was_asked_for() -> None:
    async def story(world: World) -> None:
        for codec, size in ((Codec.FP32, 4), (Codec.BF16, 2), (Codec.FP16, 2)):
            frame = decode_block(encode_block(await world.frame(codec=codec)))
            assert (frame.codec, len(frame.payload)) == (codec, size)
            assert frame.crc == crc32c(frame.payload) or codec is Codec.FP32

    run(story)


# --- form -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"linearizable": True, "exact": True}, "linearizable"),
        ({"bounded_ms": 5, "exact": True}, "bounded_ms"),
        ({"linearizable": True, "bounded_ms": 5}, "bounded_ms"),
        ({"bounded_ms": BOUNDED_MS_MAX + 1}, "bounded_ms"),
        ({"bounded_ms": 2**64 - 5}, "bounded_ms"),  # what a client makes of a negative one
        ({"if_newer_than": 0, "exact": True}, "if_newer_than"),
        ({"if_newer_than": 2**62}, "if_newer_than"),
    ],
)
def test_consistency_is_checked_in_form(fields: dict[str, Any], field: str) -> None:
    usual: dict[str, Any] = {"blocks": (), "version": 0, "exact": False}
    with pytest.raises(Refusal) as caught:
        checked(Wanted(group=1, model=1, generation=1, placement_epoch=1, **{**usual, **fields}))
    assert (caught.value.reason, caught.value.field) == (Reason.INVALID, field)


def test_the_age_travels_with_the_block() -> None:
    frame = BlockFrame(block=3, step=5, version=5, status=BlockStatus.VALUE, age_ms=1234, payload=b"bits")
    assert decode_block(encode_block(frame)).age_ms == 1234


# --- who waits for what -----------------------------------------------------------------------------------------------


def test_a_follower_waits_for_the_next_version_and_leaves_later_ones_to_others() -> None:
    async def story(world: World) -> None:
        waiting = asyncio.ensure_future(world.frame(version=6))
        await turns()
        assert not waiting.done()
        wake = world.replica.wake
        assert wake is not None
        refusal = await world.refusal(version=7)
        assert refusal.reason is Reason.NOT_READY
        assert "2 updates behind version 7 of block 0" in refusal.message
        world.replica.version = 6
        wake()
        assert (await waiting).version == 6

    run(story)


def test_a_leader_waits_for_a_version_that_only_time_brings_until_the_deadline() -> None:
    async def story(world: World) -> None:
        world.replica.leading_now = True
        refusal = await world.refusal(version=9, time_left_s=0.02)
        assert refusal.reason is Reason.DEADLINE

    run(story)


def test_whoever_waits_for_a_version_leaves_no_waiter_behind_however_it_ends() -> None:
    async def story(world: World) -> None:
        await world.refusal(version=6, time_left_s=0.02)
        await world.refusal(version=9, time_left_s=0.02)  # a follower leaves it to others
        given_up = asyncio.ensure_future(world.frame(version=6))
        await turns()
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        assert [waiter.cancelled for waiter in world.replica.waiters] == [True] * 3
        assert world.puller.pulls == 0

    run(story)
