"""Models that are loaded and deleted, as group 0 decides, drives and answers it (RULES M1)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from paramserver.catalogue import drive, snapshots
from paramserver.catalogue.commands import DeleteModel, Envelope, LoadModel, ShardDeleted, decode, encode
from paramserver.catalogue.drive import CreateShard, DeleteShard, OpenShard, ShardReply
from paramserver.catalogue.machine import CatalogueMachine
from paramserver.catalogue.state import Leaving, Loaded, Model, RateStage
from paramserver.wire.errors import Reason, Refusal
from paramserver.wire.spec import TensorSpec, sgd
from tests.unit.catalogue.test_catalogue_leader import SECRET, SPEC, World, refused, run

FILE = Loaded(7, ((3, 0.5), (9, 0.25)))


async def load(world: World, loaded: Loaded = FILE) -> Model:
    return await world.leader.lifecycle.load_model(world.caller(), SPEC, loaded)


async def open_(world: World, model: Model) -> Model:
    epoch = model.initialization.epoch
    return await world.leader.lifecycle.open_model(world.caller(), model.model, model.generation, epoch)


async def until(found: Callable[[], bool]) -> None:
    for _ in range(1000):
        if found():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came")


async def another(world: World) -> int:
    return await world.leader.open_session(b"e" * 16, SECRET, "bert")


def told_of(world: World, model: Model, kind: type) -> list[drive.ShardCommand]:
    return [command for _, command in world.told if isinstance(command, kind) and number_of(command) == model.model]


def number_of(command: drive.ShardCommand) -> int:
    return command.model.model if isinstance(command, CreateShard) else command.model


# --- deletion -------------------------------------------------------------------------------------------------------


def test_a_deletion_is_answered_when_every_group_has_let_go() -> None:
    async def story(world: World) -> None:
        model = await world.opened()
        slow = asyncio.Event()
        execute = world.execute

        async def held_up(group: int, command: drive.ShardCommand) -> ShardReply:
            if group == 3 and isinstance(command, DeleteShard):
                await slow.wait()
            return await execute(group, command)

        world.leader._tenure.drives._execute = held_up  # type: ignore[union-attr]
        deleting = asyncio.create_task(world.leader.lifecycle.delete_model(world.caller(), model.model, 1, force=False))
        await until(lambda: world.machine.leaving.get(model.model) == Leaving(model.model, 1, frozenset({3})))
        assert not deleting.done()
        slow.set()
        await deleting
        assert not world.machine.models
        assert not world.machine.leaving
        assert told_of(world, model, DeleteShard) == [DeleteShard(model.model, 1, model.model + 1)] * 3

    run(story)


def test_a_name_is_free_at_once_and_an_id_never_is() -> None:
    async def story(world: World) -> None:
        model = await world.opened()
        world.answer = lambda group, command: (
            Refusal(Reason.NOT_READY, "no leader") if isinstance(command, DeleteShard) else world.well(group, command)
        )
        deleting = asyncio.create_task(world.leader.lifecycle.delete_model(world.caller(), model.model, 1, force=False))
        await until(lambda: model.model in world.machine.leaving)
        made = await world.leader.lifecycle.create_model(
            world.caller(), replace(SPEC, tensors=(TensorSpec("other", (5,)),))
        )
        assert made.model > model.model
        assert world.machine.named("m") == made
        world.answer = world.well
        await deleting

    run(story)


def test_a_deletion_sent_again_is_answered_and_nothing_else_is_deleted() -> None:
    async def story(world: World) -> None:
        model, caller = await world.opened(), world.caller()
        await world.leader.lifecycle.delete_model(caller, model.model, 1, force=False)
        again = await world.opened()
        await world.leader.lifecycle.delete_model(caller, model.model, 1, force=False)
        assert list(world.machine.models) == [again.model]
        gone = await refused(world.leader.lifecycle.delete_model(world.caller(), model.model, 1, force=False))
        assert gone.reason is Reason.NOT_FOUND

    run(story)


def test_ranks_that_are_held_keep_a_model_unless_it_is_forced() -> None:
    async def story(world: World) -> None:
        model = await world.opened()
        await world.leader.claim_rank(world.caller(), model.model, 1, 1)
        refusal = await refused(world.leader.lifecycle.delete_model(world.caller(), model.model, 1, force=False))
        assert (refusal.reason, refusal.code) == (Reason.CONFLICT, "FAILED_PRECONDITION")
        assert "rank 1 of model 'm' is held, by anna" in refusal.message
        await world.leader.lifecycle.delete_model(world.caller(), model.model, 1, force=True)
        gone = await refused(world.leader.claim_rank(world.caller(), model.model, 1, 1))
        assert gone.reason is Reason.NOT_FOUND

    run(story)


def test_who_waits_for_a_deleted_model_is_told() -> None:
    async def story(world: World) -> None:
        world.answer = lambda _group, _command: Refusal(Reason.NOT_READY, "no leader")
        creating = asyncio.create_task(world.model())
        await until(lambda: bool(world.machine.models))
        number = next(iter(world.machine.models))
        deleting = asyncio.create_task(world.leader.lifecycle.delete_model(world.caller(), number, 1, force=False))
        refusal = await refused(creating)
        assert refusal.reason is Reason.NOT_FOUND
        world.answer = world.well
        await deleting

    run(story)


def test_ids_are_settled_up_to_the_lowest_that_is_on_its_way() -> None:
    async def story(world: World) -> None:
        world.answer = lambda group, command: (
            Refusal(Reason.NOT_READY, "no leader") if isinstance(command, CreateShard) else world.well(group, command)
        )
        creating = asyncio.create_task(world.model())
        await until(lambda: bool(world.machine.models))
        waits = next(iter(world.machine.models))
        world.answer = lambda group, command: (
            Refusal(Reason.NOT_READY, "no leader")
            if isinstance(command, CreateShard) and number_of(command) == waits
            else world.well(group, command)
        )
        other = await world.leader.lifecycle.create_model(world.caller(), replace(SPEC, name="other"))
        await world.leader.lifecycle.delete_model(world.caller(), other.model, 1, force=False)
        assert {one.settled for one in told_of(world, other, DeleteShard)} == {waits}  # type: ignore[union-attr]
        creating.cancel()

    run(story)


# --- loading --------------------------------------------------------------------------------------------------------


def test_a_load_leaves_the_generation_before_alone_until_it_is_open() -> None:
    async def story(world: World) -> None:
        before = await world.opened()
        model = await load(world)
        assert (model.generation, model.complete, model.open) == (2, True, False)
        assert world.machine.named("m") == before
        assert [one.model for one in await world.leader.models()] == [before.model]
        opened = await open_(world, model)
        assert world.machine.named("m") == opened
        await until(lambda: not world.machine.leaving)
        assert list(world.machine.models) == [model.model]
        assert len(told_of(world, before, DeleteShard)) == len(before.groups)

    run(story)


def test_what_is_loaded_has_its_step_and_its_rates() -> None:
    async def story(world: World) -> None:
        model = await open_(world, await load(world))
        assert (model.generation, model.loaded) == (1, FILE)
        assert [(one.number, one.step, one.learning_rate, one.stage) for one in model.rates] == [
            (1, 3, 0.5, RateStage.DONE),
            (2, 9, 0.25, RateStage.DONE),
        ]
        assert {command.model.loaded for command in told_of(world, model, CreateShard)} == {FILE}  # type: ignore[union-attr]

    run(story)


def test_another_spec_is_refused_and_the_tensor_is_named() -> None:
    async def story(world: World) -> None:
        await world.opened()
        other = replace(SPEC, tensors=(TensorSpec("w", (5,)),))
        refusal = await refused(world.leader.lifecycle.load_model(world.caller(), other, FILE))
        assert refusal.reason is Reason.SPEC_MISMATCH
        assert "'w' of shape (3072,)" in refusal.expected
        assert "'w' of shape (5,)" in refusal.received

    run(story)


def test_two_loads_at_once() -> None:
    async def story(world: World) -> None:
        model = await load(world)
        first, world.session = world.session, await another(world)
        refusal = await refused(load(world))
        assert (refusal.reason, refusal.holder) == (Reason.CONFLICT, f"anna (session {first})")
        assert 0 < refusal.lease_ends_ms <= 1000
        made = await refused(world.model())
        assert (made.reason, made.retryable) == (Reason.NOT_READY, True)
        world.session = first
        assert (await open_(world, model)).open

    run(story)


def test_a_load_that_is_sent_again_is_one() -> None:
    async def story(world: World) -> None:
        caller = world.caller()
        first = await world.leader.lifecycle.load_model(caller, SPEC, FILE)
        again = await world.leader.lifecycle.load_model(caller, SPEC, FILE)
        assert first.model == again.model
        assert len(world.machine.models) == 1

    run(story)


def test_a_loader_that_is_gone_leaves_the_generation_before() -> None:
    async def story(world: World) -> None:
        before = await world.opened()
        model = await load(world)
        world.now_ms += 1001
        await world.leader.expire_due()
        await until(lambda: not world.machine.leaving)
        assert list(world.machine.models) == [before.model]
        late = await refused(open_(world, model))
        assert late.reason is Reason.NOT_FOUND
        assert (await load(world)).generation == 2

    run(story)


def test_a_load_is_given_up_but_not_when_it_is_open() -> None:
    async def story(world: World) -> None:
        model = await load(world)
        foreign = await another(world)
        mine, world.session = world.session, foreign
        other = await refused(
            world.leader.lifecycle.delete_model(world.caller(), model.model, model.generation, force=True, loading=True)
        )
        assert other.reason is Reason.CONFLICT
        world.session = mine
        visible = await refused(
            world.leader.lifecycle.delete_model(world.caller(), model.model, model.generation, force=True)
        )
        assert visible.reason is Reason.CONFLICT
        await world.leader.lifecycle.delete_model(
            world.caller(), model.model, model.generation, force=False, loading=True
        )
        assert not world.machine.models
        model = await open_(world, await load(world))
        late = await refused(
            world.leader.lifecycle.delete_model(
                world.caller(), model.model, model.generation, force=False, loading=True
            )
        )
        assert late.reason is Reason.ALREADY_OPEN
        assert list(world.machine.models) == [model.model]

    run(story)


def test_a_load_takes_no_initial_values_of_others() -> None:
    async def story(world: World) -> None:
        model = await load(world)
        refusal = await refused(
            world.leader.lifecycle.claim_initialization(world.caller(), model.model, model.generation)
        )
        assert refusal.reason is Reason.CONFLICT

    run(story)


def test_a_model_whose_groups_lack_values_is_not_opened() -> None:
    async def story(world: World) -> None:
        before, model = await world.opened(), await load(world)
        world.answer = lambda group, command: (
            ShardReply(False, "NOT_COMPLETE", "block 1 has no values of epoch 1")
            if isinstance(command, OpenShard)
            else world.well(group, command)
        )
        refusal = await refused(open_(world, model))
        assert refusal.reason is Reason.NOT_OPEN
        assert world.machine.named("m") == before

    run(story)


@pytest.mark.parametrize(
    "loaded",
    [Loaded(2**62), Loaded(1, ((2, 0.1), (1, 0.1))), Loaded(1, ((2, 0.1), (2, 0.2))), Loaded(1, ((2, -1.0),))],
    ids=["step", "order", "twice", "rate"],
)
def test_a_file_that_cannot_be_is_refused(loaded: Loaded) -> None:
    async def story(world: World) -> None:
        refusal = await refused(load(world, loaded))
        assert refusal.reason is Reason.INVALID
        assert not world.machine.models

    run(story)


# --- bytes ----------------------------------------------------------------------------------------------------------


def test_commands_are_read_back() -> None:
    for command in (LoadModel(SPEC, FILE), DeleteModel(3, 2, force=True), DeleteModel(3, 2, loading=True)):
        envelope = Envelope(command, 1, 2, b"s" * 32)
        assert decode(encode(envelope)) == envelope
    assert decode(encode(Envelope(ShardDeleted(3, 2)))).command == ShardDeleted(3, 2)


def test_a_snapshot_holds_what_was_loaded_and_what_is_leaving() -> None:
    async def story(world: World) -> None:
        await open_(world, await load(world))
        await load(world, Loaded(8))
        world.answer = lambda _group, _command: Refusal(Reason.NOT_READY, "no leader")
        other = asyncio.create_task(world.leader.lifecycle.create_model(world.caller(), replace(SPEC, name="other")))
        await until(lambda: world.machine.named("other") is not None)
        gone = world.machine.named("other")
        assert gone is not None
        deleting = asyncio.create_task(world.leader.lifecycle.delete_model(world.caller(), gone.model, 1, force=False))
        await until(lambda: bool(world.machine.leaving))
        restored = CatalogueMachine((1, 2, 3))
        restored.restore(iter([memoryview(bytes(chunk)) for chunk in world.machine.snapshot()]))
        assert restored.models == world.machine.models
        assert restored.leaving == world.machine.leaving
        assert snapshots.FORMAT == 4
        for task in (other, deleting):
            task.cancel()

    run(story)


def test_what_a_deleted_model_took_is_counted_no_more() -> None:
    async def story(world: World) -> None:
        model = await world.opened()
        held = dict(world.machine._held)
        for _ in range(3):
            made = await world.leader.lifecycle.create_model(
                world.caller(), replace(SPEC, name="other", optimizer=sgd(0.2))
            )
            await world.leader.lifecycle.delete_model(world.caller(), made.model, 1, force=False)
        assert world.machine._held == held
        await world.leader.lifecycle.delete_model(world.caller(), model.model, 1, force=False)
        assert set(world.machine._held.values()) == {0}
        assert world.machine._specs_bytes == 0

    run(story)
