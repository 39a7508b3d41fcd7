"""One version of a whole shard, kept while training goes on (RULES R4)."""

from __future__ import annotations

import numpy as np
import pytest

from paramserver.shard import snapshots
from paramserver.shard.commands import PinShard, UnpinShard, decode, encode
from paramserver.shard.loans import Loans
from paramserver.shard.machine import ShardMachine
from paramserver.shard.reads import BlockRead, Value
from paramserver.shard.results import Answer, Why
from paramserver.shard.state import Kept
from paramserver.wire.errors import Reason, Refusal
from paramserver.wire.frames import PushKind
from paramserver.wire.spec import OptimizerSpec, adam, momentum, sgd
from tests.unit.shard.kit import (
    ELEMENTS,
    MODEL,
    PLACEMENT,
    as_entry,
    machine_with,
    model_spec,
    opening_commands,
    started,
    update_command,
)

OPTIMIZERS = [sgd(0.5), momentum(0.5), adam(0.5)]


def pin(step: int, number: int = 1) -> PinShard:
    return PinShard(model=MODEL, generation=1, number=number, step=step)


def unpin(number: int = 1) -> UnpinShard:
    return UnpinShard(model=MODEL, generation=1, number=number)


def answered(machine: ShardMachine, command: object) -> Answer:
    answer = machine.apply(as_entry(command))  # type: ignore[arg-type]
    assert isinstance(answer, Answer)
    return answer


def opened(optimizer: OptimizerSpec) -> ShardMachine:
    return machine_with(opening_commands(model_spec(optimizer=optimizer)))


def step_of_all(machine: ShardMachine, step: int) -> None:
    for block in range(3):
        spec = machine.shards[MODEL].info.create.spec
        kind = PushKind.SKIP if step == 1 else PushKind.GRADIENT
        machine.apply(as_entry(update_command(spec, block, step, kind=kind)))


def state(machine: ShardMachine, block: int) -> tuple[object, ...]:
    """All that the next update depends on, in bytes."""
    shard = machine.shards[MODEL]
    seen, own = shard.published[block], shard.private[block]
    assert seen.weights is not None
    return (seen.version, seen.weights.tobytes(), *(slot.tobytes() for slot in own.slots), own.scalars)


def kept_state(machine: ShardMachine, block: int) -> tuple[object, ...]:
    kept = machine.shards[MODEL].kept[block]
    assert isinstance(kept, Kept)
    return (kept.version, kept.weights.tobytes(), *(slot.tobytes() for slot in kept.slots), kept.scalars)


@pytest.mark.parametrize("command", [pin(5), unpin(3)])
def test_commands_come_back_as_they_were(command: PinShard | UnpinShard) -> None:
    assert decode(encode(command)) == command


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("placed_at", [0, 2, 3])
def test_the_pinned_version_is_kept_with_all_that_the_optimizer_holds(optimizer: OptimizerSpec, placed_at: int) -> None:
    """Placed while it lies ahead, or at the very version; then many updates go by."""
    machine, there = opened(optimizer), []
    for step in range(8):
        if step == placed_at:
            assert answered(machine, pin(3)).changed
        if step == 3:
            there = [state(machine, block) for block in range(3)]
        step_of_all(machine, step)
    assert [kept_state(machine, block) for block in range(3)] == there
    assert machine.shards[MODEL].published[0].version == 8


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_pin_changes_no_bit_of_training(optimizer: OptimizerSpec) -> None:
    pinned, plain = opened(optimizer), opened(optimizer)
    answered(pinned, pin(2))
    for step in range(5):
        step_of_all(pinned, step)
        step_of_all(plain, step)
    assert [state(pinned, block) for block in range(3)] == [state(plain, block) for block in range(3)]


def test_what_is_kept_goes_when_the_pin_ends_and_a_late_pin_brings_nothing_back() -> None:
    machine = opened(adam(0.5))
    before = machine.size_bytes()
    answered(machine, pin(0))
    assert machine.size_bytes() == before + 3 * 4 * (3 * ELEMENTS - 100)
    assert answered(machine, unpin()).changed
    assert machine.shards[MODEL].kept == [None] * 3
    assert machine.size_bytes() == before
    late = answered(machine, pin(0))
    assert (late.ok, late.why) == (False, Why.NUMBER)
    assert not answered(machine, unpin()).changed
    assert answered(machine, pin(4, 2)).changed


def test_a_pin_that_comes_too_late_says_from_where_it_could_be() -> None:
    machine = opened(sgd(0.5))
    spec = machine.shards[MODEL].info.create.spec
    step_of_all(machine, 0)
    machine.apply(as_entry(update_command(spec, 0, 1)))  # blocks are in {1, 2}
    late = answered(machine, pin(1))
    assert (late.ok, late.why, late.highest_version) == (False, Why.PASSED, 2)
    assert answered(machine, pin(2)).ok


def test_a_pin_is_raised_and_never_lowered() -> None:
    machine = opened(sgd(0.5))
    answered(machine, pin(1))
    assert answered(machine, pin(3)).changed
    lower = answered(machine, pin(1))
    assert (lower.why, lower.highest_version) == (Why.PASSED, 3)
    for step in range(4):
        step_of_all(machine, step)
    assert kept_state(machine, 0)[0] == 3


@pytest.mark.parametrize("steps", [0, 2, 3, 5])
def test_a_snapshot_holds_what_is_pinned(steps: int) -> None:
    """Not reached yet, just reached, and long past."""
    machine = opened(adam(0.5))
    answered(machine, pin(2))
    for step in range(steps):
        step_of_all(machine, step)
    chunks = [memoryview(bytes(chunk)) for chunk in snapshots.dump(tuple(machine.shards.values()), Loans())]
    restored = ShardMachine(1)
    restored.restore(iter(chunks))
    for step in range(steps, 6):
        step_of_all(machine, step)
        step_of_all(restored, step)
    for block in range(3):
        assert kept_state(restored, block) == kept_state(machine, block)
        assert state(restored, block) == state(machine, block)


def test_pulls_of_the_pinned_version_bring_every_part() -> None:
    node, spec = started(optimizer=adam(0.5))
    node.log.add(pin(2), *(update_command(spec, block, step) for step in range(5) for block in range(3)))
    node.apply()

    def read(version: int, part: int) -> Value:
        want = BlockRead(model=MODEL, generation=1, placement_epoch=PLACEMENT, block=1, version=version, part=part)
        found = node.leader.read(want, lambda: None)
        assert isinstance(found, Value)
        return found

    kept = node.machine.shards[MODEL].kept[1]
    assert kept is not None
    for part, array in enumerate((kept.weights, *kept.slots)):
        value = read(2, part)
        assert value.scalars == kept.scalars != (1.0, 1.0)
        assert np.array_equal(np.frombuffer(value.payload, np.float32), array)
    for version, part, reason in ((1, 0, Reason.GONE), (5, 1, Reason.GONE), (2, 3, Reason.INVALID)):
        with pytest.raises(Refusal) as refused:
            read(version, part)
        assert refused.value.reason is reason
    node.log.add(unpin())
    node.apply()
    with pytest.raises(Refusal) as refused:
        read(2, 0)
    assert refused.value.reason is Reason.GONE
