"""Changes of the learning rate as group 0 decides and drives them (RULES S11), against data groups that only note."""

from __future__ import annotations

import asyncio
import math

import pytest

from paramserver.catalogue import drive, rates, snapshots
from paramserver.catalogue.commands import ChangeRate, Envelope, RateAdvanced, decode, encode
from paramserver.catalogue.drive import HoldShard, SetRate, ShardReply
from paramserver.catalogue.state import Model, RateChange, RateStage
from paramserver.wire.errors import Reason, Refusal
from paramserver.wire.spec import float32
from tests.unit.catalogue.test_catalogue_leader import World, refused, run


class Groups:
    """Data groups at versions of their own, which count on while they are asked."""

    def __init__(self, world: World, versions: dict[int, int], *, runs: int = 0) -> None:
        self.world = world
        self.versions = versions
        self.runs = runs
        """Steps that go by with each command to a group that holds nothing."""
        self.holds: dict[int, tuple[int, int]] = {}
        self.rates: dict[int, RateChange] = {}
        self.two_hold = asyncio.Event()
        world.answer = self.answer

    def answer(self, group: int, command: drive.ShardCommand) -> ShardReply | Refusal:
        if isinstance(command, HoldShard):
            if not command.check_only and group not in self.holds:
                self.versions[group] += self.runs
            now = self.versions[group]
            if not command.check_only:
                if command.step < now:
                    return ShardReply(False, drive.PASSED, "too late", highest_version=now)
                self.holds[group] = (command.number, command.step)
                if len(self.holds) == 2:
                    self.two_hold.set()
            return ShardReply(True, highest_version=now)
        if isinstance(command, SetRate):
            assert self.holds.get(group) == (command.change.number, command.change.step)
            assert set(self.holds.values()) == {(command.change.number, command.change.step)}, "not all hold"
            self.rates[group] = command.change
        return self.world.well(group, command)


def test_every_group_holds_before_any_group_is_told_the_rate() -> None:
    async def story(world: World) -> None:
        model = await world.opened()
        groups = Groups(world, {1: 5, 2: 4, 3: 5})
        step = await world.leader.changes.set_learning_rate(world.caller(), model.model, 1, 0.1, 9)
        assert step == 9
        assert {group: (one.step, one.learning_rate) for group, one in groups.rates.items()} == dict.fromkeys(
            (1, 2, 3), (9, float32(0.1))
        )
        done = world.machine.models[model.model]
        assert done.rates == (RateChange(1, 9, float32(0.1), RateStage.DONE),)
        assert done.rate_under_way is None

    run(story)


def test_a_step_that_training_passes_meanwhile_is_raised_for_all() -> None:
    async def story(world: World) -> None:
        model = await world.opened()
        groups = Groups(world, {1: 5, 2: 5, 3: 5}, runs=3)
        step = await world.leader.changes.set_learning_rate(world.caller(), model.model, 1, 0.1, None)
        assert step > 6
        assert {one.step for one in groups.rates.values()} == {step}
        assert set(groups.holds.values()) == {(1, step)}

    run(story)


def test_a_step_that_is_past_is_refused_with_the_earliest() -> None:
    async def story(world: World) -> None:
        model = await world.opened()
        Groups(world, {1: 5, 2: 7, 3: 6})
        refusal = await refused(world.leader.changes.set_learning_rate(world.caller(), model.model, 1, 0.1, 6))
        assert (refusal.code, refusal.field, refusal.version) == ("FAILED_PRECONDITION", "from_step", 7)
        assert not refusal.retryable
        assert "expected 7 (the earliest there can be now)" in refusal.message
        assert world.machine.models[model.model].rates == ()

    run(story)


@pytest.mark.parametrize("value", [math.nan, -0.1, math.inf, 1e39])
def test_a_rate_that_is_none_is_refused_when_it_is_proposed(value: float) -> None:
    async def story(world: World) -> None:
        model = await world.opened()
        before = world.index
        refusal = await refused(world.leader.changes.set_learning_rate(world.caller(), model.model, 1, value, 9))
        assert (refusal.reason, refusal.field) == (Reason.INVALID, "learning_rate")
        assert world.index == before

    run(story)


def test_an_unknown_model_or_generation_is_refused() -> None:
    async def story(world: World) -> None:
        model = await world.opened()
        unknown = await refused(world.leader.changes.set_learning_rate(world.caller(), 99, 1, 0.1, 9))
        assert unknown.reason is Reason.NOT_FOUND
        other = await refused(world.leader.changes.set_learning_rate(world.caller(), model.model, 2, 0.1, 9))
        assert (other.code, other.field, other.retryable) == ("FAILED_PRECONDITION", "generation", False)

    run(story)


def test_a_new_leader_of_group_0_finishes_what_the_old_one_began() -> None:
    """One group held, another could not be reached: then the leader goes, and whoever asked sends it again."""

    async def story(world: World) -> None:
        model = await world.opened()
        groups = Groups(world, {1: 5, 2: 5, 3: 5})
        cut_off = {3}

        def answer(group: int, command: drive.ShardCommand) -> ShardReply | Refusal:
            if group in cut_off and not getattr(command, "check_only", False):
                return Refusal(Reason.NOT_READY, "cut off")
            return groups.answer(group, command)

        world.answer = answer
        caller = world.caller()
        first = asyncio.create_task(world.leader.changes.set_learning_rate(caller, model.model, 1, 0.1, 8))
        await groups.two_hold.wait()
        assert not groups.rates
        world.leader.leading(2)
        assert (await refused(first)).retryable
        groups.versions = dict.fromkeys((1, 2, 3), 8)  # as far as the holds let them
        cut_off.clear()
        assert await world.leader.changes.set_learning_rate(caller, model.model, 1, 0.1, 8) == 8
        assert len(groups.rates) == 3

    run(story)


def test_changes_of_a_model_come_one_after_the_other() -> None:
    async def story(world: World) -> None:
        model = await world.opened()
        Groups(world, {1: 0, 2: 0, 3: 0})
        asked = [
            world.leader.changes.set_learning_rate(world.caller(), model.model, 1, 0.5 / number, 10 * number)
            for number in (1, 2)
        ]
        results = await asyncio.gather(*asked, return_exceptions=True)
        # Two that were judged at the same moment: one of them may find the other under way, and says so.
        assert all(step in (10, 20) or isinstance(step, Refusal) for step in results)
        assert [one.stage for one in world.machine.models[model.model].rates] == [RateStage.DONE] * sum(
            isinstance(step, int) for step in results
        )

    run(story)


# --- what commands do -----------------------------------------------------------------------------------------------


def made(world: World, *commands: RateAdvanced | ChangeRate, model: Model) -> list[bool]:
    answers = []
    for command in commands:
        change = rates.change if isinstance(command, ChangeRate) else rates.advance
        model, answer = change(model, command)  # type: ignore[arg-type]
        answers.append(answer.ok)
    return answers


def test_a_change_goes_forward_only() -> None:
    def advanced(step: int, stage: RateStage, number: int = 1) -> RateAdvanced:
        return RateAdvanced(1, 1, number, step, stage)

    async def story(world: World) -> None:
        model = await world.opened()
        assert made(
            world,
            ChangeRate(1, 1, 0.5, 4),
            ChangeRate(1, 1, 0.5, 5),  # one is under way
            advanced(4, RateStage.HOLDING),  # not raised
            advanced(6, RateStage.HOLDING),
            advanced(4, RateStage.SETTLED),  # not where all hold now
            advanced(6, RateStage.DONE),  # not settled yet
            advanced(6, RateStage.SETTLED),
            advanced(8, RateStage.HOLDING),  # final
            advanced(6, RateStage.DONE, 2),
            advanced(6, RateStage.DONE),
            advanced(6, RateStage.DONE),
            ChangeRate(1, 1, 0.25, 2),
            ChangeRate(1, 1, math.nan, 2),
            model=model,
        ) == [True, False, False, True, False, False, True, False, False, True, False, True, False]

    run(story)


@pytest.mark.parametrize("command", [ChangeRate(1, 2, float32(0.1), 7), RateAdvanced(1, 2, 3, 7, RateStage.SETTLED)])
def test_commands_come_back_as_they_were(command: ChangeRate | RateAdvanced) -> None:
    assert decode(encode(Envelope(command))) == Envelope(command)


def test_a_snapshot_holds_the_changes() -> None:
    async def story(world: World) -> None:
        model = await world.opened()
        Groups(world, {1: 0, 2: 0, 3: 0})
        await world.leader.changes.set_learning_rate(world.caller(), model.model, 1, 0.1, 3)
        contents = snapshots.read(world.machine.snapshot())
        assert contents.models[0].rates == world.machine.models[model.model].rates != ()

    run(story)
