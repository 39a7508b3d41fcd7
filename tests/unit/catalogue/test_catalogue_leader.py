"""Group 0's leader: what clients get, and what is carried into the data groups, against fakes of both."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from consensus.core.interface import Entry, EntryKind
from consensus.runtime.interface import Committed, Outcome, Refused, Unknown
from paramserver.catalogue import drive
from paramserver.catalogue.drive import CreateShard, OpenShard, SetView, ShardReply
from paramserver.catalogue.leader import Caller, CatalogueLeader
from paramserver.catalogue.machine import CatalogueMachine
from paramserver.catalogue.state import Model, Node
from paramserver.wire.checksum import crc32c
from paramserver.wire.errors import Reason, Refusal
from paramserver.wire.spec import ModelSpec, Sgd, TensorSpec

SPEC = ModelSpec("m", (TensorSpec("w", (3 * 1024,)),), Sgd(0.1), 2, block_bytes=4096)
SECRET = b"d" * 32


class World:
    """One node whose group 0 commits at once, and data groups that note what they are told."""

    def __init__(self) -> None:
        self.machine = CatalogueMachine((1, 2, 3))
        self.index = 0
        self.now_ms = 0
        self.told: list[tuple[int, drive.ShardCommand]] = []
        self.outcome: Callable[[Committed], Outcome] = lambda committed: committed
        self.answer: Callable[[int, drive.ShardCommand], ShardReply | Refusal] = self.well
        self.lowest = {1: 5, 2: 4, 3: 5}
        self.views: dict[int, int] = {}
        self.leader = CatalogueLeader(
            self.machine,
            propose=self.propose,
            execute=self.execute,
            elsewhere=lambda: Refusal(Reason.NOT_LEADER, "elsewhere"),
            nodes=lambda: {1: Node(1, "a:1", b"u" * 16)},
            now_ms=lambda: self.now_ms,
            lease_ms=1000,
        )
        self.session = 0
        self.sequence = 0

    async def propose(self, payload: bytes) -> Outcome:
        await asyncio.sleep(0)
        self.index += 1
        result = self.machine.apply(Entry(1, self.index, EntryKind.NORMAL, payload, crc32c(payload)))
        self.leader.applied(())
        return self.outcome(Committed(1, self.index, result))

    async def execute(self, group: int, command: drive.ShardCommand) -> ShardReply:
        await asyncio.sleep(0)
        self.told.append((group, command))
        reply = self.answer(group, command)
        if isinstance(reply, Refusal):
            raise reply
        return reply

    def well(self, group: int, command: drive.ShardCommand) -> ShardReply:
        if isinstance(command, SetView):
            self.views[group] = command.view.number
        return ShardReply(True, lowest_version=self.lowest[group], view=self.views.get(group, 0))

    def caller(self) -> Caller:
        self.sequence += 1
        return Caller(self.session, self.sequence, SECRET)

    async def started(self) -> World:
        self.leader.leading(1)
        self.session = await self.leader.open_session(b"c" * 16, SECRET, "anna")
        return self

    async def model(self) -> Model:
        return await self.leader.lifecycle.create_model(self.caller(), SPEC)

    async def opened(self) -> Model:
        model = await self.model()
        claim = await self.leader.lifecycle.claim_initialization(self.caller(), model.model, 1)
        return await self.leader.lifecycle.open_model(self.caller(), model.model, 1, claim.epoch)


def run(story: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        world = await World().started()
        try:
            async with asyncio.timeout(5):
                await story(world)
        finally:
            world.leader.deposed(9)

    asyncio.run(whole())


async def refused(call: Awaitable[object]) -> Refusal:
    with pytest.raises(Refusal) as caught:
        await call
    return caught.value


def test_create_returns_when_every_group_has_the_shard_and_the_first_view() -> None:
    async def story(world: World) -> None:
        model = await world.model()
        assert model.complete
        assert world.views == {1: 1, 2: 1, 3: 1}
        kinds = [type(command) for group, command in world.told if group == 2]
        assert kinds == [CreateShard, SetView]

    run(story)


def test_a_group_that_does_not_answer_is_asked_again() -> None:
    async def story(world: World) -> None:
        failures = iter([Refusal(Reason.NOT_READY, "no leader"), Refusal(Reason.NOT_LEADER, "not me")])
        world.answer = lambda group, command: (
            next(failures, None) or world.well(group, command) if group == 2 else world.well(group, command)
        )
        assert (await world.model()).complete
        assert world.leader.troubles() == []

    run(story)


def test_a_claim_is_answered_when_every_group_has_its_view() -> None:
    async def story(world: World) -> None:
        model = await world.opened()
        gate = asyncio.Event()
        held = world.answer

        def slow(group: int, command: drive.ShardCommand) -> ShardReply | Refusal:
            if group == 3 and not gate.is_set():
                return Refusal(Reason.NOT_READY, "electing")
            return held(group, command)

        world.answer = slow
        claim = asyncio.create_task(world.leader.claim_rank(world.caller(), model.model, 1, 0))
        await asyncio.sleep(0.05)
        assert not claim.done()
        assert "electing" in world.leader.troubles()[0]
        gate.set()
        granted = await claim
        assert (granted.lease_epoch, granted.view.number, granted.lowest_version) == (1, 2, 4)
        assert granted.view.lease_epochs == (1, 0)

    run(story)


def test_opening_asks_every_group_before_it_decides() -> None:
    async def story(world: World) -> None:
        model = await world.model()
        claim = await world.leader.lifecycle.claim_initialization(world.caller(), model.model, 1)
        world.answer = lambda group, command: (
            ShardReply(False, "NOT_COMPLETE", "block 1 has no values of epoch 1")
            if group == 2 and isinstance(command, OpenShard)
            else world.well(group, command)
        )
        refusal = await refused(world.leader.lifecycle.open_model(world.caller(), model.model, 1, claim.epoch))
        assert refusal.code == "FAILED_PRECONDITION"
        assert "group 2: block 1" in refusal.message
        assert not world.machine.models[model.model].open
        opens = [command for _, command in world.told if isinstance(command, OpenShard)]
        assert opens
        assert all(command.check_only for command in opens)

    run(story)


def test_opening_ends_when_every_group_has_opened() -> None:
    async def story(world: World) -> None:
        model = await world.opened()
        assert model.open
        opened = {group for group, command in world.told if isinstance(command, OpenShard) and not command.check_only}
        assert opened == {1, 2, 3}
        claim = await world.leader.lifecycle.claim_initialization(world.caller(), model.model, 1)
        assert (claim.granted, claim.open) == (False, True)

    run(story)


def test_what_was_decided_is_carried_out_though_nobody_waits_for_it_any_more() -> None:
    """Nobody else told the groups: they heard of it from the next leader only (simulated seed 301535)."""

    async def story(world: World) -> None:
        proposed: list[bytes] = []

        async def silent(payload: bytes) -> Outcome:
            proposed.append(payload)
            return await asyncio.Future()

        world.leader._propose = silent
        asked = asyncio.create_task(world.model())
        await asyncio.sleep(0)
        asked.cancel()
        world.leader._propose = world.propose
        await world.propose(*proposed)
        await asyncio.sleep(0.05)
        assert world.views == {1: 1, 2: 1, 3: 1}

    run(story)


def test_a_new_leader_carries_out_what_the_old_one_left() -> None:
    async def story(world: World) -> None:
        model = await world.opened()
        world.leader.deposed(1)
        world.told.clear()
        world.leader.leading(2)
        await asyncio.sleep(0.05)
        told = {(group, type(command)) for group, command in world.told}
        assert told == {(group, kind) for group in (1, 2, 3) for kind in (OpenShard, SetView)}
        assert world.machine.models[model.model].open

    run(story)


def test_who_waits_is_sent_elsewhere_when_leadership_ends() -> None:
    async def story(world: World) -> None:
        model = await world.opened()
        world.answer = lambda group, command: Refusal(Reason.NOT_READY, "electing")
        claim = asyncio.create_task(refused(world.leader.claim_rank(world.caller(), model.model, 1, 0)))
        await asyncio.sleep(0.01)
        world.leader.deposed(1)
        assert (await claim).reason is Reason.NOT_READY
        assert (await refused(world.model())).reason is Reason.NOT_LEADER

    run(story)


def test_outcomes_that_are_no_commit() -> None:
    async def story(world: World) -> None:
        for outcome, reason in (
            (Refused(2, 1), Reason.NOT_LEADER),
            (Refused(1, 1, busy=True), Reason.BUSY),
            (Refused(1, 1, full=True), Reason.DISK_FULL),
            (Unknown(1, 5), Reason.NOT_READY),
        ):
            world.outcome = lambda _, outcome=outcome: outcome  # type: ignore[misc]
            refusal = await refused(world.leader.lifecycle.create_model(world.caller(), SPEC))
            assert (refusal.reason, refusal.retryable) == (reason, True)

    run(story)


def test_a_lease_ends_by_command_when_nothing_renews_it() -> None:
    async def story(world: World) -> None:
        model = await world.opened()
        claim = await world.leader.claim_rank(world.caller(), model.model, 1, 0)
        world.now_ms = 900
        assert world.leader.renew(world.caller(), model.model, 0, claim.lease_epoch, 0).number == 2
        world.now_ms = 1800
        await world.leader.expire_due()
        assert world.machine.models[model.model].leases[0].held
        world.now_ms = 1900
        await world.leader.expire_due()
        assert not world.machine.models[model.model].leases[0].held
        refusal = await refused(_now(lambda: world.leader.renew(world.caller(), model.model, 0, claim.lease_epoch, 0)))
        assert refusal.reason is Reason.STALE_LEASE

    run(story)


async def _now(call: Callable[[], object]) -> object:
    return call()


def test_the_members_are_registered() -> None:
    async def story(world: World) -> None:
        await asyncio.sleep(0.01)
        assert world.machine.nodes == {1: Node(1, "a:1", b"u" * 16)}

    run(story)


def test_a_mismatch_shows_both_specs() -> None:
    async def story(world: World) -> None:
        await world.model()
        other = ModelSpec("m", (TensorSpec("w", (9,)),), Sgd(0.2), 2, block_bytes=4096)
        refusal = await refused(world.leader.lifecycle.create_model(world.caller(), other))
        assert refusal.reason is Reason.SPEC_MISMATCH
        assert "3072" in refusal.expected
        assert "(9,)" in refusal.received

    run(story)


@pytest.mark.parametrize("sequence", [0, 2**62])
def test_sequence_numbers_have_bounds(sequence: int) -> None:
    async def story(world: World) -> None:
        refusal = await refused(world.leader.lifecycle.create_model(Caller(world.session, sequence, SECRET), SPEC))
        assert refusal.field == "sequence"

    run(story)
