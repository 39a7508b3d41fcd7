"""The learning rate as a function of the step, in one data group (RULES S11): what commands do, what leaders do."""

from __future__ import annotations

import math

import numpy as np
import pytest

from paramserver.shard import snapshots
from paramserver.shard.commands import HoldShard, SetRate, decode, encode
from paramserver.shard.errors import CommandError
from paramserver.shard.loans import Loans
from paramserver.shard.machine import ShardMachine
from paramserver.shard.results import Answer, NotTaken, Updated, Why
from paramserver.shard.steps import NO_STEPS, RATE_CHANGES_MAX, Hold, RateFrom, Steps
from paramserver.v1 import paramserver_pb2 as pb
from paramserver.wire.spec import adam, float32, momentum, sgd
from tests.unit.shard.kit import (
    MODEL,
    Rank,
    as_entry,
    machine_with,
    model_spec,
    opening_commands,
    same_bits,
    started,
    update_command,
)

SPEC = model_spec()


def hold(step: int, number: int = 1, **more: object) -> HoldShard:
    return HoldShard(model=MODEL, generation=1, number=number, step=step, **more)  # type: ignore[arg-type]


def rate(step: int, value: float, number: int = 1) -> SetRate:
    return SetRate(model=MODEL, generation=1, number=number, step=step, learning_rate=float32(value))


def apply(machine: ShardMachine, command: object) -> object:
    return machine.apply(as_entry(command))  # type: ignore[arg-type]


def answered(machine: ShardMachine, command: object) -> Answer:
    answer = apply(machine, command)
    assert isinstance(answer, Answer)
    return answer


def step_of_all(machine: ShardMachine, step: int) -> list[object]:
    return [apply(machine, update_command(SPEC, block, step)) for block in range(3)]


# --- what commands do -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [hold(5), hold(5, 2, check_only=True), rate(5, 0.25)])
def test_commands_come_back_as_they_were(command: HoldShard | SetRate) -> None:
    assert decode(encode(command)) == command


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_a_rate_that_is_none_is_no_command(value: float) -> None:
    command = SetRate(model=MODEL, generation=1, number=1, step=0, learning_rate=value)
    with pytest.raises(CommandError, match="learning rate"):
        decode(encode(command))


def test_nothing_of_a_step_is_applied_while_a_hold_stands_and_the_change_ends_it() -> None:
    machine = machine_with(opening_commands(SPEC))
    assert answered(machine, hold(1)).changed
    assert all(isinstance(result, Updated) for result in step_of_all(machine, 0))
    refused = step_of_all(machine, 1)
    assert all(isinstance(result, NotTaken) and result.why is Why.HELD for result in refused)
    assert answered(machine, rate(1, 0.125)).changed
    assert all(isinstance(result, Updated) for result in step_of_all(machine, 1))


@pytest.mark.parametrize("optimizer", [sgd(0.5), momentum(0.5), adam(0.5)])
def test_the_rate_changes_at_its_step_and_not_when_it_is_told(optimizer: object) -> None:
    """As a machine whose optimizer had the one rate before, and one that had the other after, with the same slots."""
    spec = model_spec(optimizer=optimizer)  # type: ignore[arg-type]
    changing = machine_with(opening_commands(spec))
    plain = machine_with(opening_commands(spec))
    answered(changing, hold(2))
    answered(changing, rate(2, 0.125))
    for step in range(4):
        for block in range(3):
            own = {"learning_rate": float32(0.125)} if step >= 2 else {}
            apply(changing, update_command(spec, block, step))
            apply(plain, update_command(spec, block, step, **own))
            here, there = (machine.shards[MODEL].published[block] for machine in (changing, plain))
            assert here.weights is not None
            assert there.weights is not None
            assert same_bits(here.weights, there.weights), step
            assert here.digests == there.digests


def test_a_hold_that_comes_too_late_says_from_where_it_could_be() -> None:
    machine = machine_with(opening_commands(SPEC))
    step_of_all(machine, 0)
    apply(machine, update_command(SPEC, 0, 1))  # blocks are in {1, 2}
    late = answered(machine, hold(1))
    assert (late.ok, late.why, late.highest_version) == (False, Why.PASSED, 2)
    assert answered(machine, hold(2)).ok
    assert isinstance(apply(machine, update_command(SPEC, 1, 1)), Updated)
    assert isinstance(apply(machine, update_command(SPEC, 0, 2)), NotTaken)


def test_a_hold_is_raised_and_never_lowered() -> None:
    """What an old leader of group 0 sent comes after what the new one did."""
    machine = machine_with(opening_commands(SPEC))
    assert answered(machine, hold(3)).changed
    assert answered(machine, hold(5)).changed
    lower = answered(machine, hold(3))
    assert (lower.ok, lower.why, lower.highest_version) == (False, Why.PASSED, 5)
    assert machine.shards[MODEL].info.steps.hold == Hold(1, 5)
    repeated = answered(machine, hold(5))
    assert (repeated.ok, repeated.changed) == (True, False)


def test_a_change_needs_the_hold_of_its_number_and_step_and_is_taken_once() -> None:
    machine = machine_with(opening_commands(SPEC))
    assert answered(machine, rate(1, 0.125)).why is Why.NUMBER
    answered(machine, hold(2))
    assert answered(machine, rate(1, 0.125)).why is Why.NUMBER
    assert answered(machine, rate(2, 0.125)).changed
    again = answered(machine, rate(2, 0.25))
    assert (again.ok, again.changed) == (True, False)
    assert machine.shards[MODEL].info.steps.rate_at(2) == 0.125
    late_hold = answered(machine, hold(2))
    assert (late_hold.ok, late_hold.changed) == (True, False)
    assert machine.shards[MODEL].info.steps.hold is None


def test_asking_changes_nothing() -> None:
    machine = machine_with(opening_commands(SPEC))
    apply(machine, update_command(SPEC, 0, 0))
    answer = answered(machine, hold(0, 0, check_only=True))
    assert (answer.ok, answer.changed, answer.lowest_version, answer.highest_version) == (True, False, 0, 1)
    assert machine.shards[MODEL].info.steps == NO_STEPS


def test_another_generation_is_refused() -> None:
    machine = machine_with(opening_commands(SPEC))
    other = HoldShard(model=MODEL, generation=2, number=1, step=1)
    assert answered(machine, other).why is Why.GENERATION


def test_rates_are_remembered_as_long_as_a_step_can_need_them() -> None:
    steps = NO_STEPS
    for number, step in enumerate((10, 20, 5, 20, 30), 1):
        steps = steps.with_rate(number, RateFrom(step, float(number)), 0)
    assert [steps.rate_at(step) for step in (4, 5, 9, 10, 19, 20, 29, 30, 99)] == [None, 3, 3, 1, 1, 4, 4, 5, 5]
    # Every block is at 20 or beyond: what was in force before can't be asked for again.
    assert steps.with_rate(6, RateFrom(40, 6.0), 20).rates == (
        RateFrom(20, 4.0),
        RateFrom(30, 5.0),
        RateFrom(40, 6.0),
    )


def test_changes_that_lie_ahead_are_bounded() -> None:
    machine = machine_with(opening_commands(SPEC))
    many = tuple(RateFrom(step, 0.5) for step in range(1, RATE_CHANGES_MAX + 2))
    machine.shards[MODEL].set_steps(Steps(None, 1, many))
    assert answered(machine, hold(0, 0, check_only=True)).why is Why.TOO_MANY


def test_a_snapshot_holds_the_hold_and_the_rates() -> None:
    machine = machine_with(opening_commands(SPEC))
    answered(machine, hold(7))
    answered(machine, rate(7, 0.1))
    answered(machine, hold(9, 2))
    chunks = [memoryview(bytes(chunk)) for chunk in snapshots.dump(tuple(machine.shards.values()), Loans())]
    restored = ShardMachine(1)
    restored.restore(iter(chunks))
    expected = Steps(Hold(2, 9), 1, (RateFrom(7, float32(0.1)),))
    assert restored.shards[MODEL].info.steps == machine.shards[MODEL].info.steps == expected


def test_a_snapshot_of_the_formats_before_is_read() -> None:
    machine = machine_with(opening_commands(SPEC))
    raw = b"".join(bytes(chunk) for chunk in snapshots.dump(tuple(machine.shards.values()), Loans()))
    at = len(snapshots.MAGIC) + 4
    # Nothing was deleted: a length of 0. The shard's creation is a command now, and was bare.
    assert raw[at : at + 4] == bytes(4)
    length = int.from_bytes(raw[at + 4 : at + 8], "little")
    rest = raw[at + 8 + length :]
    bare = pb.ShardCommand.FromString(raw[at + 8 : at + 8 + length]).create.SerializeToString()
    second = raw[:at] + len(bare).to_bytes(4, "little") + bare + rest
    # Nothing is bound to steps: its part is a length of 0, behind the view.
    behind = 4 + int.from_bytes(rest[:4], "little")
    assert rest[behind : behind + 4] == bytes(4)
    first = second[: -len(rest)] + rest[:behind] + rest[behind + 4 :]
    for old, magic in ((first, snapshots.MAGIC_1), (second, snapshots.MAGIC_2)):
        restored = ShardMachine(1)
        restored.restore(iter([memoryview(old.replace(snapshots.MAGIC, magic))]))
        now, before = restored.shards[MODEL].info, machine.shards[MODEL].info
        assert (now.create, now.view, now.open_epoch, now.steps) == (
            before.create,
            before.view,
            before.open_epoch,
            NO_STEPS,
        )


# --- what its leader does -------------------------------------------------------------------------------------------


def test_a_leader_holds_contributions_back_and_goes_on_without_a_new_stream() -> None:
    node, spec = started()
    ranks = [Rank(node, spec, rank) for rank in range(2)]
    node.log.add(hold(1))
    node.apply()
    for step in range(2):
        for rank in ranks:
            rank.push(step, 0, 1, 2)
        node.settle()
    assert node.versions() == [1, 1, 1]
    assert all(rank.held for rank in ranks)
    assert not node.log.pending
    node.log.add(rate(1, 0.25))
    node.apply()
    node.settle()
    assert node.versions() == [2, 2, 2]
    assert all(rank.replies.refusal is None for rank in ranks)
    assert node.leader.counters["updates_held"] == 0


def test_a_sum_that_was_on_its_way_when_the_hold_came_is_proposed_again() -> None:
    """It stands in the log behind the hold: refused there, and nobody has to send it a second time."""
    node, spec = started()
    ranks = [Rank(node, spec, rank) for rank in range(2)]
    for rank in ranks:
        rank.push(0, 0, 1, 2)
    node.log.add(hold(0))  # before the sums
    node.settle()
    assert node.versions() == [0, 0, 0]
    assert node.leader.counters["updates_held"] == 3
    node.log.add(rate(0, 0.25))
    node.apply()
    node.settle()
    assert node.versions() == [1, 1, 1]
    assert node.alarms == []
    assert [rank.replies.seen for rank in ranks] == [[(block, 1, "APPLIED") for block in range(3)]] * 2
    single = machine_with(opening_commands(spec))
    for block in range(3):
        apply(single, update_command(spec, block, 0, learning_rate=0.25))
        assert np.array_equal(node.weights(block), single.shards[MODEL].published[block].weights)  # type: ignore[arg-type]


def test_a_new_leader_knows_of_the_hold() -> None:
    node, spec = started()
    node.log.add(hold(0))
    node.apply()
    node.leader.deposed(1)
    node.lead(2)
    ranks = [Rank(node, spec, rank) for rank in range(2)]
    for rank in ranks:
        rank.push(0, 0)
    assert all(rank.held for rank in ranks)
