"""What commands do to the state, and what they must never do (RULES S1, S6, S8, M1, M3, R6)."""

from __future__ import annotations

import dataclasses
import struct

import numpy as np
import pytest

from paramserver.shard.commands import CreateShard, OpenShard, SetView
from paramserver.shard.machine import ShardMachine
from paramserver.shard.results import Answer, Duplicate, NotTaken, Stored, Updated, Why, encode_result
from paramserver.v1 import paramserver_pb2 as pb
from paramserver.wire.frames import PushKind
from paramserver.wire.protos import View
from paramserver.wire.spec import NonFinite, adam, momentum
from tests.unit.shard.kit import (
    EPOCH,
    GROUP,
    MODEL,
    as_entry,
    create_command,
    initial_command,
    initial_values,
    machine_with,
    model_spec,
    opening_commands,
    same_bits,
    update_command,
    view_of,
)

SPEC = model_spec()


def opened(**spec: object) -> ShardMachine:
    return machine_with(opening_commands(model_spec(**spec) if spec else SPEC))  # type: ignore[arg-type]


def apply(machine: ShardMachine, command: object) -> object:
    return machine.apply(as_entry(command))  # type: ignore[arg-type]


# --- S1 -------------------------------------------------------------------------------------------------------------


def test_a_command_that_stands_in_the_log_twice_counts_once() -> None:
    """HAZARDS 34: a new leader cannot know whether the old one's command will be committed."""
    machine = opened()
    first = apply(machine, update_command(SPEC, 0, 0))
    assert isinstance(first, Updated)
    assert first.version == 1
    weights = first.weights.copy()
    again = apply(machine, update_command(SPEC, 0, 0))
    assert again == Duplicate(model=MODEL, block=0, step=0, version=1)
    published = machine.shards[MODEL].published[0]
    assert published.version == 1
    assert published.weights is not None
    assert same_bits(published.weights, weights)


def test_the_first_of_two_commands_for_a_step_wins() -> None:
    machine = opened()
    first = apply(machine, update_command(SPEC, 0, 0, kind=PushKind.SKIP))
    assert isinstance(first, Updated)
    assert isinstance(apply(machine, update_command(SPEC, 0, 0)), Duplicate)
    published = machine.shards[MODEL].published[0]
    assert published.weights is published.previous


def test_a_command_for_a_later_version_is_refused() -> None:
    result = apply(opened(), update_command(SPEC, 0, 1))
    assert isinstance(result, NotTaken)
    assert (result.why, result.version) == (Why.AHEAD, 0)


# --- S6, R6: two versions, published buffers are never written again -------------------------------------------------


def test_the_version_before_stays_as_it_was() -> None:
    """HAZARDS 37: overwritten in place, a step could not be computed again."""
    machine = opened()
    kept: list[tuple[np.ndarray, bytes]] = []
    for step in range(4):
        weights = machine.shards[MODEL].published[0].weights
        assert weights is not None
        kept.append((weights, weights.tobytes()))
        apply(machine, update_command(SPEC, 0, step))
        published = machine.shards[MODEL].published[0]
        assert published.previous is not None
        assert published.previous.tobytes() == kept[-1][1], "version m is gone"
        assert published.at(step) is not None
        assert published.at(step - 1) is None
    for array, bits in kept:
        assert array.tobytes() == bits, "a published buffer was written"


def test_published_buffers_are_read_only() -> None:
    machine = opened()
    apply(machine, update_command(SPEC, 0, 0))
    for block in machine.shards[MODEL].published:
        assert block.weights is not None
        with pytest.raises(ValueError, match="read-only"):
            block.weights[0] = 1.0


def test_the_command_buffer_is_left_as_it_was() -> None:
    machine = opened(optimizer=adam())
    entry = as_entry(update_command(SPEC, 0, 0))
    before = bytes(entry.payload)
    machine.apply(entry)
    assert bytes(entry.payload) == before


# --- S8 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"view": 2}, Why.VIEW),
        ({"view": 0}, Why.VIEW),
        ({"contributors": 1}, Why.CONTRIBUTORS),
        ({"contributors": 7}, Why.CONTRIBUTORS),
        ({"count": 3}, Why.CONTRIBUTORS),
        ({"generation": 2}, Why.GENERATION),
        ({"model": 8}, Why.UNKNOWN_MODEL),
        ({"block": 3}, Why.NOT_HERE),
        ({"elements": 5, "values": np.zeros(5, np.float32)}, Why.MALFORMED),
    ],
)
def test_updates_that_do_not_fit_are_refused_without_effect(change: dict[str, object], why: Why) -> None:
    machine = opened()
    command = dataclasses.replace(update_command(SPEC, 0, 0), **change)
    result = apply(machine, command)
    assert isinstance(result, NotTaken)
    assert result.why is why
    assert [block.version for block in machine.shards[MODEL].published] == [0, 0, 0]


def test_a_view_is_set_once_and_only_forward() -> None:
    machine = opened()
    second = SetView(model=MODEL, generation=1, view=view_of(SPEC, 2, (1, 2)))
    answer = apply(machine, second)
    assert answer == Answer(model=MODEL, ok=True, changed=True, lowest_version=0, view=2)
    again = apply(machine, second)
    assert isinstance(again, Answer)
    assert (again.ok, again.changed) == (True, False)
    for view in (view_of(SPEC, 1), view_of(SPEC, 2, (9, 9)), View(3, 0, (1, 2, 3))):
        refused = apply(machine, SetView(model=MODEL, generation=1, view=view))
        assert isinstance(refused, Answer)
        assert (refused.ok, refused.view) == (False, 2)


def test_a_view_answers_with_the_lowest_version() -> None:
    machine = opened()
    for block in (0, 1):
        apply(machine, update_command(SPEC, block, 0))
    answer = apply(machine, SetView(model=MODEL, generation=1, view=view_of(SPEC, 2)))
    assert isinstance(answer, Answer)
    assert answer.lowest_version == 0
    apply(machine, update_command(SPEC, 2, 0, view=2))
    again = apply(machine, SetView(model=MODEL, generation=1, view=view_of(SPEC, 2)))
    assert isinstance(again, Answer)
    assert again.lowest_version == 1


# --- M1 to M3 -------------------------------------------------------------------------------------------------------


def test_create_is_idempotent_and_another_spec_is_refused() -> None:
    machine = ShardMachine(GROUP)
    assert apply(machine, create_command(SPEC)).changed  # type: ignore[attr-defined]
    again = apply(machine, create_command(SPEC))
    assert isinstance(again, Answer)
    assert (again.ok, again.changed) == (True, False)
    other = apply(machine, create_command(model_spec(ranks=3)))
    assert isinstance(other, Answer)
    assert (other.ok, other.why) == (False, Why.SPEC)


@pytest.mark.parametrize(("first", "blocks"), [(0, 0), (0, 4), (3, 1)])
def test_a_shard_lies_within_its_model(first: int, blocks: int) -> None:
    command = CreateShard(model=1, generation=1, spec=SPEC, first_block=first, blocks=blocks, placement_epoch=1)
    answer = apply(ShardMachine(GROUP), command)
    assert isinstance(answer, Answer)
    assert (answer.ok, answer.why) == (False, Why.NOT_HERE)


def test_after_open_no_initial_values_are_taken() -> None:
    """HAZARDS 41, second half: a restarted worker must never reset a model (M3)."""
    machine = opened()
    apply(machine, update_command(SPEC, 0, 0))
    trained = machine.shards[MODEL].published[0]
    for epoch in (EPOCH, EPOCH + 1):
        result = apply(machine, initial_command(SPEC, 0, epoch=epoch))
        assert isinstance(result, NotTaken)
        assert result.why is Why.ALREADY_OPEN
    assert machine.shards[MODEL].published[0] is trained


def test_initial_values_of_a_higher_epoch_replace_and_of_a_lower_are_refused() -> None:
    machine = machine_with([create_command(SPEC)])
    ones, twos = np.full(1024, 1.0, np.float32), np.full(1024, 2.0, np.float32)
    assert isinstance(apply(machine, initial_command(SPEC, 0, epoch=2, values=ones)), Stored)
    lower = apply(machine, initial_command(SPEC, 0, epoch=1, values=twos))
    assert isinstance(lower, NotTaken)
    assert lower.why is Why.EPOCH
    assert isinstance(apply(machine, initial_command(SPEC, 0, epoch=3, values=twos)), Stored)
    weights = machine.shards[MODEL].published[0].weights
    assert weights is not None
    assert same_bits(weights, twos)


def test_open_needs_every_block_of_its_epoch() -> None:
    machine = machine_with([create_command(SPEC), *(initial_command(SPEC, block) for block in (0, 1))])
    opening = OpenShard(model=MODEL, generation=1, epoch=EPOCH)
    missing = apply(machine, opening)
    assert isinstance(missing, Answer)
    assert missing.why is Why.NOT_COMPLETE
    assert "block 2" in missing.message
    apply(machine, initial_command(SPEC, 2, epoch=EPOCH + 1))
    other = apply(machine, opening)
    assert isinstance(other, Answer)
    assert other.why is Why.NOT_COMPLETE
    apply(machine, update_command(SPEC, 0, 0))
    for block in range(3):
        apply(machine, initial_command(SPEC, block, epoch=EPOCH + 1))
    final = OpenShard(model=MODEL, generation=1, epoch=EPOCH + 1)
    for changed in (True, False):
        answer = apply(machine, final)
        assert isinstance(answer, Answer)
        assert (answer.ok, answer.changed) == (True, changed)
    late = apply(machine, opening)
    assert isinstance(late, Answer)
    assert (late.ok, late.why) == (False, Why.EPOCH)


def test_a_check_opens_nothing() -> None:
    machine = machine_with([create_command(SPEC), *(initial_command(SPEC, block) for block in range(3))])
    answer = apply(machine, OpenShard(model=MODEL, generation=1, epoch=EPOCH, check_only=True))
    assert isinstance(answer, Answer)
    assert (answer.ok, answer.changed) == (True, False)
    assert not machine.shards[MODEL].info.is_open


def test_updates_before_open_are_refused() -> None:
    result = apply(machine_with([create_command(SPEC)]), update_command(SPEC, 0, 0))
    assert isinstance(result, NotTaken)
    assert result.why is Why.NOT_OPEN


def test_a_shard_may_be_the_middle_of_a_model() -> None:
    spec = model_spec(blocks=5)
    machine = machine_with(opening_commands(spec, first=2, blocks=2))
    assert isinstance(apply(machine, update_command(spec, 3, 0)), Updated)
    assert [block.version for block in machine.shards[MODEL].published] == [0, 1]
    result = apply(machine, update_command(spec, 1, 0))
    assert isinstance(result, NotTaken)
    assert result.why is Why.NOT_HERE


# --- robustness -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload", [b"", b"\x01", b"\x01\x01short", b"\x01\x02" + bytes(200), b"\x63\x01" + bytes(200), b"\x10\x01\xff\xff"]
)
def test_bytes_that_are_no_command_are_a_result(payload: bytes) -> None:
    result = opened().apply(as_entry(payload))
    assert isinstance(result, NotTaken)
    assert result.why is Why.MALFORMED


def test_random_bytes_never_raise() -> None:
    random = np.random.default_rng(1)
    machine = opened()
    heads = [b"", b"\x01\x01", b"\x02\x01", b"\x10\x01", struct.pack("<BBBBIQ", 1, 1, 1, 1, 0, MODEL)]
    for number in range(500):
        payload = heads[number % len(heads)] + random.bytes(int(random.integers(0, 300)))
        machine.apply(as_entry(payload))
    assert [block.version for block in machine.shards[MODEL].published] == [0, 0, 0]


def test_initial_values_must_be_finite_unless_allowed() -> None:
    values = initial_values(SPEC, 0)
    values[3] = np.nan
    result = apply(machine_with([create_command(SPEC)]), initial_command(SPEC, 0, values=values))
    assert isinstance(result, NotTaken)
    allowing = model_spec(non_finite=NonFinite.ALLOW)
    assert isinstance(
        apply(machine_with([create_command(allowing)]), initial_command(allowing, 0, values=values)), Stored
    )


def test_a_learning_rate_in_the_command_overrides_the_optimizers() -> None:
    machine, other = opened(), opened()
    apply(machine, update_command(SPEC, 0, 0, learning_rate=0.0))
    apply(other, update_command(SPEC, 0, 0))
    weights = [m.shards[MODEL].published[0].weights for m in (machine, other)]
    assert weights[0] is not None
    assert weights[1] is not None
    assert same_bits(weights[0], initial_values(SPEC, 0))
    assert not same_bits(weights[0], weights[1])


def test_results_for_the_catalogue() -> None:
    machine = opened()
    result = machine.apply(as_entry(SetView(model=MODEL, generation=1, view=view_of(SPEC, 4))))
    parsed = pb.ShardResult.FromString(encode_result(result))
    assert (parsed.ok, parsed.lowest_version, parsed.view) == (True, 0, 4)
    refused = pb.ShardResult.FromString(encode_result(machine.apply(as_entry(update_command(SPEC, 0, 3)))))
    assert (refused.ok, refused.reason) == (False, "AHEAD")


# --- D1 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [momentum(0.1), adam()], ids=["momentum", "adam"])
def test_replicas_that_apply_the_same_have_the_same_digests(optimizer: object) -> None:
    spec = model_spec(optimizer=optimizer)  # type: ignore[arg-type]
    machines = [machine_with(opening_commands(spec)) for _ in range(2)]
    for step in range(12):
        for machine in machines:
            for block in range(3):
                apply(machine, update_command(spec, block, step))
    blocks = [machine.shards[MODEL].published for machine in machines]
    assert [block.digests for block in blocks[0]] == [block.digests for block in blocks[1]]
    assert [version for version, _ in blocks[0][0].digests] == list(range(5, 13)), "the last 8 are kept"


def test_a_digest_covers_slots_and_powers() -> None:
    spec = model_spec(optimizer=adam())
    machine = machine_with(opening_commands(spec))
    apply(machine, update_command(spec, 0, 0))
    shard = machine.shards[MODEL]
    published = shard.published[0]
    known = published.digests[-1][1]
    assert shard.state_digest(0, 1, published.weights) == known
    shard.private[0].slots[1][7] += np.float32(1e-9)
    assert shard.state_digest(0, 1, published.weights) != known
    shard.private[1] = dataclasses.replace(shard.private[1], scalars=(0.5, 0.5))
    other = machine_with(opening_commands(spec)).shards[MODEL]
    assert shard.state_digest(1, 0, shard.published[1].weights) != other.published[1].digests[-1][1]


def test_size_counts_both_versions_and_slots() -> None:
    assert opened().size_bytes() == SPEC.parameters * 4 * 2
    assert opened(optimizer=adam()).size_bytes() == SPEC.parameters * 4 * 4
