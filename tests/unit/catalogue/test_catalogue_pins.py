"""Pins of whole models as group 0 decides, drives and ends them (RULES R4, I4)."""

from __future__ import annotations

import asyncio

import pytest

from paramserver.catalogue import drive, pins, snapshots
from paramserver.catalogue.commands import Envelope, PinAdvanced, PinModel, ReleasePin, decode, encode
from paramserver.catalogue.drive import HoldShard, PinShard, ShardReply, UnpinShard
from paramserver.catalogue.leases import PIN_LIFE_MS
from paramserver.catalogue.state import Model, PinStage
from paramserver.wire.errors import Reason, Refusal
from tests.unit.catalogue.test_catalogue_leader import World, refused, run


class Groups:
    """Data groups at versions of their own. `runs`: steps that go by with each pin that comes too late."""

    def __init__(self, world: World, versions: dict[int, int], *, runs: int = 0) -> None:
        self.world, self.versions, self.runs = world, versions, runs
        self.pins: dict[int, tuple[int, int]] = {}
        self.ended: dict[int, int] = {}
        world.answer = self.answer

    def answer(self, group: int, command: drive.ShardCommand) -> ShardReply | Refusal:
        if isinstance(command, HoldShard):
            assert command.check_only
            return ShardReply(True, highest_version=self.versions[group])
        if isinstance(command, PinShard):
            if group not in self.pins:
                self.versions[group] += self.runs
            if command.step < self.versions[group]:
                return ShardReply(False, drive.PASSED, "too late", highest_version=self.versions[group])
            self.pins[group] = (command.number, command.step)
        if isinstance(command, UnpinShard):
            self.ended[group] = command.number
        return self.world.well(group, command)


def now(world: World, model: Model) -> Model:
    return world.machine.models[model.model]


def test_a_pin_is_answered_when_every_group_has_it_at_one_step() -> None:
    async def story(world: World) -> None:
        model = await world.opened()
        groups = Groups(world, {1: 5, 2: 5, 3: 6}, runs=2)
        pin = await world.leader.changes.pin(world.caller(), model.model, 1, None)
        assert pin.step > 6
        assert set(groups.pins.values()) == {(1, pin.step)}
        assert pin.stage is PinStage.PLACED

    run(story)


def test_changes_of_the_rate_that_lie_ahead_are_no_matter_to_a_pin() -> None:
    async def story(world: World) -> None:
        model = await world.opened()
        groups = Groups(world, {1: 5, 2: 5, 3: 5})

        def full(group: int, command: drive.ShardCommand) -> ShardReply | Refusal:
            if isinstance(command, HoldShard):
                return ShardReply(False, "TOO_MANY", "256 changes lie ahead", highest_version=5)
            return groups.answer(group, command)

        world.answer = full
        assert (await world.leader.changes.pin(world.caller(), model.model, 1, None)).step == 5
        change = await refused(world.leader.changes.set_learning_rate(world.caller(), model.model, 1, 0.1, 9))
        assert (change.reason, change.retryable) == (Reason.CONFLICT, False)
        assert "256 changes lie ahead" in change.message

    run(story)


def test_an_idle_model_is_pinned_where_it_stands() -> None:
    async def story(world: World) -> None:
        model = await world.opened()
        Groups(world, {1: 5, 2: 5, 3: 5})
        assert (await world.leader.changes.pin(world.caller(), model.model, 1, None)).step == 5

    run(story)


def test_a_second_pin_of_a_model_and_one_too_many_are_refused() -> None:
    async def story(world: World) -> None:
        model = await world.opened()
        Groups(world, {1: 5, 2: 5, 3: 5})
        await world.leader.changes.pin(world.caller(), model.model, 1, 7)
        second = await refused(world.leader.changes.pin(world.caller(), model.model, 1, 8))
        assert (second.reason, second.retryable) == (Reason.CONFLICT, False)
        assert "version 7 of model 'm' is being saved" in second.message
        pinned = now(world, model)
        _, answer = pins.place(await other(pinned), PinModel(9, 1, 3), 1, [pinned] * pins.PINS_MAX)
        assert "the cluster's bound" in answer.message

    async def other(model: Model) -> Model:
        from dataclasses import replace

        return replace(model, model=9, pin=None)

    run(story)


def test_a_past_step_an_unopened_and_an_unknown_model_are_refused() -> None:
    async def story(world: World) -> None:
        unopened = await world.model()
        early = await refused(world.leader.changes.pin(world.caller(), unopened.model, 1, None))
        assert "no values yet" in early.message
        model = await world.opened()
        Groups(world, {1: 5, 2: 5, 3: 5})
        past = await refused(world.leader.changes.pin(world.caller(), model.model, 1, 4))
        assert (past.code, past.field, past.version) == ("FAILED_PRECONDITION", "step", 5)
        unknown = await refused(world.leader.changes.pin(world.caller(), 99, 1, None))
        assert unknown.reason is Reason.NOT_FOUND

    run(story)


def test_a_released_pin_ends_in_every_group() -> None:
    async def story(world: World) -> None:
        model = await world.opened()
        groups = Groups(world, {1: 5, 2: 5, 3: 5})
        pin = await world.leader.changes.pin(world.caller(), model.model, 1, None)
        for _ in range(2):  # and again
            await world.leader.changes.release_pin(world.caller(), model.model, 1, pin.number)
        while len(groups.ended) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert now(world, model).pinned is None
        assert (await world.leader.changes.pin(world.caller(), model.model, 1, None)).number == 2

    run(story)


def test_a_pin_ends_with_its_lease_unless_it_is_renewed() -> None:
    """A lease is 1000 ms in this world."""

    async def story(world: World) -> None:
        model = await world.opened()
        groups = Groups(world, {1: 5, 2: 5, 3: 5})
        caller = world.caller()
        pin = await world.leader.changes.pin(caller, model.model, 1, None)
        for _ in range(3):
            world.now_ms += 900
            world.leader.renew(caller, model.model, 0, 0, 0, pin.number)
            await world.leader.expire_due()
            assert now(world, model).pinned is not None
        world.now_ms += 1000
        await world.leader.expire_due()
        assert now(world, model).pinned is None
        with pytest.raises(Refusal) as late:
            world.leader.renew(caller, model.model, 0, 0, 0, pin.number)
        assert late.value.reason is Reason.STALE_LEASE
        while len(groups.ended) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0)

    run(story)


def test_no_pin_outlives_its_bound_however_often_it_is_renewed() -> None:
    async def story(world: World) -> None:
        model = await world.opened()
        Groups(world, {1: 5, 2: 5, 3: 5})
        caller = world.caller()
        pin = await world.leader.changes.pin(caller, model.model, 1, None)
        await world.leader.expire_due()
        began_ms = world.now_ms
        while now(world, model).pinned is not None:
            assert world.now_ms - began_ms <= PIN_LIFE_MS
            world.now_ms += 900
            world.leader.renew(caller, model.model, 0, 0, 0, pin.number)
            await world.leader.expire_due()
        assert world.now_ms - began_ms >= PIN_LIFE_MS

    run(story)


def test_a_new_leader_of_group_0_gives_a_pin_a_whole_lease_and_ends_it() -> None:
    async def story(world: World) -> None:
        model = await world.opened()
        Groups(world, {1: 5, 2: 5, 3: 5})
        await world.leader.changes.pin(world.caller(), model.model, 1, None)
        world.now_ms += 900
        world.leader.leading(2)
        world.now_ms += 900
        await world.leader.expire_due()
        assert now(world, model).pinned is not None
        world.now_ms += 100
        await world.leader.expire_due()
        assert now(world, model).pinned is None

    run(story)


@pytest.mark.parametrize("command", [PinModel(1, 2, 7), PinAdvanced(1, 2, 3, 7, PinStage.PLACED), ReleasePin(1, 2, 3)])
def test_commands_come_back_as_they_were(command: PinModel | PinAdvanced | ReleasePin) -> None:
    assert decode(encode(Envelope(command))) == Envelope(command)


def test_a_snapshot_holds_the_pin() -> None:
    async def story(world: World) -> None:
        model = await world.opened()
        Groups(world, {1: 5, 2: 5, 3: 5})
        await world.leader.changes.pin(world.caller(), model.model, 1, 7)
        contents = snapshots.read(world.machine.snapshot())
        assert contents.models[0].pin == now(world, model).pin is not None

    run(story)
