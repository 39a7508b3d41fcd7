"""Shards whose values come from a checkpoint, and shards that are deleted (RULES M1, M3)."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import pytest

from paramserver.shard import snapshots
from paramserver.shard.commands import (
    HEADER_BYTES,
    Command,
    CreateShard,
    DeleteShard,
    InitialBlock,
    Loaded,
    OpenShard,
    SetView,
    decode,
    encode,
)
from paramserver.shard.deleted import Deleted
from paramserver.shard.errors import CommandError
from paramserver.shard.loans import Loans
from paramserver.shard.machine import ShardMachine
from paramserver.shard.reads import BlockRead, Waiter
from paramserver.shard.results import Answer, NotTaken, Stored, Why
from paramserver.wire.checksum import crc32c
from paramserver.wire.errors import Reason, Refusal
from paramserver.wire.frames import BlockStatus, PushFrame, PushKind, decode_push, encode_push
from paramserver.wire.spec import OptimizerSpec, adam, momentum, sgd
from tests.unit.shard.kit import (
    EPOCH,
    MODEL,
    PLACEMENT,
    Log,
    Node,
    Rank,
    Replies,
    as_entry,
    create_command,
    hello,
    machine_with,
    model_spec,
    opening_commands,
    started,
    update_command,
    view_of,
)

OPTIMIZERS = [sgd(0.5), momentum(0.5), adam(0.5)]
STEPS = 4
RATES = ((2, 0.25), (6, 0.125))


def applied(machine: ShardMachine, command: Command) -> Any:
    return machine.apply(as_entry(command))


def trained(optimizer: OptimizerSpec) -> ShardMachine:
    """A shard with a history of its own, and a learning rate that will change."""
    spec = model_spec(optimizer=optimizer)
    machine = machine_with([load_command(spec, 0), *parts(machine_with(opening_commands(spec))), *opening(spec)])
    for step in range(STEPS):
        step_of_all(machine, step)
    return machine


def step_of_all(machine: ShardMachine, step: int) -> None:
    spec = machine.shards[MODEL].info.create.spec
    for block in range(machine.shards[MODEL].info.layout.blocks):
        applied(machine, update_command(spec, block, step))


def load_command(spec: Any, step: int) -> CreateShard:
    return replace(create_command(spec), loaded=Loaded(step, RATES))


def opening(spec: Any) -> list[Command]:
    return [
        OpenShard(model=MODEL, generation=1, epoch=EPOCH),
        SetView(model=MODEL, generation=1, view=view_of(spec)),
    ]


def parts(source: ShardMachine, *, epoch: int = EPOCH) -> list[InitialBlock]:
    """What a checkpoint of that shard holds, in the order in which it is sent."""
    shard = source.shards[MODEL]
    arrays = [
        [(block.weights, own.scalars) for block, own in zip(shard.published, shard.private, strict=True)],
        *[[(own.slots[slot].copy(), ()) for own in shard.private] for slot in range(shard.slots)],
    ]
    return [
        InitialBlock(
            model=MODEL,
            generation=1,
            epoch=epoch,
            block=block,
            elements=values.size,
            values=values,
            loaded=True,
            part=part,
            scalars=scalars,
        )
        for part, blocks in enumerate(arrays)
        for block, (values, scalars) in enumerate(blocks)
        if values is not None
    ]


def restored(machine: ShardMachine) -> ShardMachine:
    made = ShardMachine(machine.group)
    chunks = snapshots.dump(tuple(machine.shards.values()), Loans(), machine.deleted)
    made.restore(iter([memoryview(bytes(chunk)) for chunk in chunks]))
    return made


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_training_goes_on_with_the_bits_of_a_run_that_never_stopped(optimizer: OptimizerSpec) -> None:
    source = trained(optimizer)
    spec = source.shards[MODEL].info.create.spec
    other = machine_with([load_command(spec, STEPS), *parts(source), *opening(spec)])
    assert [block.version for block in other.shards[MODEL].published] == [STEPS] * 3
    for step in range(STEPS, STEPS + 4):  # the rate changes in between
        for machine in (source, other):
            step_of_all(machine, step)
    left, right = ([block.digests[-1] for block in machine.shards[MODEL].published] for machine in (source, other))
    assert left == right


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_a_shard_opens_only_with_all_parts_of_one_epoch(optimizer: OptimizerSpec) -> None:
    source = trained(optimizer)
    spec = source.shards[MODEL].info.create.spec
    machine = machine_with([load_command(spec, STEPS)])
    check = replace(opening(spec)[0], check_only=True)  # type: ignore[type-var]
    for one in parts(source):
        answer = applied(machine, check)
        assert (answer.ok, answer.why) == (False, Why.NOT_COMPLETE)
        assert isinstance(applied(machine, one), Stored)
        machine = restored(machine)  # a replica that is filled meanwhile knows as much
    assert applied(machine, check).ok
    assert isinstance(applied(machine, parts(source, epoch=EPOCH + 1)[0]), Stored)
    assert applied(machine, check).why is Why.NOT_COMPLETE


def test_weights_that_come_again_leave_what_came_beside_them() -> None:
    source = trained(adam(0.5))
    spec = source.shards[MODEL].info.create.spec
    sent = parts(source)
    machine = machine_with([load_command(spec, STEPS), *sent, sent[0], *opening(spec)])
    assert machine.shards[MODEL].info.is_open
    assert machine.shards[MODEL].private[0].slots[0].tobytes() == source.shards[MODEL].private[0].slots[0].tobytes()


def test_parts_that_do_not_fit_are_refused() -> None:
    source = trained(adam(0.5))
    spec = source.shards[MODEL].info.create.spec
    sent = parts(source)
    machine = machine_with([load_command(spec, STEPS)])
    wrong = {
        "a part before the weights": (sent[3], Why.NOT_COMPLETE),
        "no such part": (replace(sent[3], part=3), Why.MALFORMED),
        "numbers missing": (replace(sent[0], scalars=()), Why.MALFORMED),
        "no checkpoint's": (replace(sent[0], loaded=False, scalars=()), Why.MALFORMED),
    }
    for what, (command, why) in wrong.items():
        result = applied(machine, command)
        assert isinstance(result, NotTaken), what
        assert result.why is why, what
    plain = machine_with([create_command(spec)])
    assert applied(plain, sent[0]).why is Why.MALFORMED


def test_commands_are_read_back() -> None:
    spec = model_spec(optimizer=adam(0.5))
    source = trained(adam(0.5))
    for command in (load_command(spec, 5), DeleteShard(model=MODEL, generation=2, settled=9)):
        assert decode(encode(command)) == command
    for one in (parts(source)[0], parts(source)[-1]):
        found = decode(bytes(encode(one)))
        assert isinstance(found, InitialBlock)
        assert (found.part, found.scalars, found.loaded) == (one.part, one.scalars, True)
        assert found.values is not None
        assert found.values.tobytes() == one.values.tobytes()  # type: ignore[union-attr]


@pytest.mark.parametrize("count", [7, 2**31], ids=str)
def test_numbers_beyond_the_header_are_refused(count: int) -> None:
    raw = bytearray(encode(parts(trained(sgd(0.5)))[0]))
    struct.pack_into("<I", raw, 72, count)
    with pytest.raises(CommandError):
        decode(bytes(raw))
    raw[72:76] = struct.pack("<I", 1)
    struct.pack_into("<d", raw, 80, float("nan"))
    with pytest.raises(CommandError):
        decode(bytes(raw))
    assert HEADER_BYTES == 128


def test_a_leader_takes_the_parts_that_a_client_sends() -> None:
    source = trained(momentum(0.5))
    spec = source.shards[MODEL].info.create.spec
    node = Node(machine_log(load_command(spec, STEPS)))
    node.lead()
    replies = Replies()
    stream = node.leader.open_initialization(hello(initialization_epoch=EPOCH), replies)
    for one in parts(source):
        payload = memoryview(one.values.tobytes())  # type: ignore[union-attr]
        frame = PushFrame(
            block=one.block,
            kind=PushKind.INITIAL,
            part=one.part,
            scalars=one.scalars,
            payload=payload,
            crc=crc32c(payload),
        )
        assert decode_push(encode_push(frame)) == frame
        stream.offer(frame, lambda: None)
        node.settle()
    assert [frame.status for frame in replies.frames] == [BlockStatus.STORED] * 6
    bad = PushFrame(block=0, kind=PushKind.INITIAL, part=2, payload=payload, crc=crc32c(payload))
    stream.offer(bad, lambda: None)
    assert replies.refusal is not None
    assert (replies.refusal.reason, replies.refusal.field) == (Reason.INVALID, "part")


def machine_log(*commands: Command) -> Log:
    log = Log()
    log.add(*commands)
    return log


# --- deletion -------------------------------------------------------------------------------------------------------


def delete(settled: int = MODEL + 1) -> DeleteShard:
    return DeleteShard(model=MODEL, generation=1, settled=settled)


def test_a_deleted_shard_is_gone_and_does_not_come_back() -> None:
    spec = model_spec()
    machine = machine_with(opening_commands(spec))
    answer = applied(machine, delete())
    assert (answer.ok, answer.changed) == (True, True)
    assert not machine.shards
    assert machine.size_bytes() == 0
    assert applied(machine, delete()) == Answer(model=MODEL, ok=True)
    late = applied(machine, create_command(spec))
    assert (late.ok, late.why) == (False, Why.UNKNOWN_MODEL)
    assert applied(machine, update_command(spec, 0, 0)).why is Why.UNKNOWN_MODEL
    assert applied(machine, replace(create_command(spec), model=MODEL + 1)).ok
    assert applied(restored(machine), create_command(spec)).why is Why.UNKNOWN_MODEL


def test_a_model_that_is_on_its_way_into_the_group_still_comes() -> None:
    spec = model_spec()
    machine = machine_with(opening_commands(spec))
    applied(machine, delete(settled=MODEL - 2))
    assert machine.deleted == Deleted(MODEL - 2, frozenset({MODEL}))
    assert applied(machine, replace(create_command(spec), model=MODEL - 1)).ok
    assert applied(machine, create_command(spec)).why is Why.UNKNOWN_MODEL
    applied(machine, DeleteShard(model=MODEL + 5, generation=1, settled=MODEL + 6))
    assert machine.deleted == Deleted(MODEL + 6, frozenset())


def test_a_deletion_of_an_earlier_generation_leaves_the_later_one() -> None:
    spec = model_spec()
    machine = machine_with([replace(create_command(spec), generation=2)])
    assert applied(machine, delete()).why is Why.GENERATION
    assert MODEL in machine.shards


def test_a_snapshot_being_written_shows_what_was_there_and_counts_it() -> None:
    machine = machine_with(opening_commands(model_spec(optimizer=momentum(0.5))))
    size = sum(
        own.slots[0].nbytes + seen.weights.nbytes
        for seen, own in zip(  # type: ignore[union-attr]
            machine.shards[MODEL].published, machine.shards[MODEL].private, strict=True
        )
    )
    chunks = machine.snapshot()
    applied(machine, delete())
    assert machine.lent_bytes() == size
    old = ShardMachine(machine.group)
    old.restore(iter([memoryview(bytes(chunk)) for chunk in chunks]))
    assert MODEL in old.shards
    assert machine.lent_bytes() == 0
    machine.end_snapshot()


def test_workers_and_readers_of_a_deleted_model_are_told() -> None:
    node, spec = started()
    rank = Rank(node, spec, 0)
    rank.push(0, 0)
    woken: list[int] = []
    want = BlockRead(model=MODEL, generation=1, placement_epoch=PLACEMENT, block=0, version=3)
    assert isinstance(node.leader.read(want, lambda: woken.append(1)), Waiter)
    node.log.add(delete())
    node.apply()
    assert rank.replies.refusal is not None
    assert (rank.replies.refusal.reason, rank.replies.refusal.field) == (Reason.NOT_FOUND, "hello.model")
    assert woken == [1]
    with pytest.raises(Refusal) as read:
        node.leader.read(want, lambda: None)
    assert read.value.reason is Reason.NOT_FOUND
    with pytest.raises(Refusal) as pushed:
        node.leader.open_stream(hello(1), Replies())
    assert pushed.value.reason is Reason.NOT_FOUND
    assert node.leader.drained()


def test_a_model_that_is_deleted_while_it_is_initialised() -> None:
    spec = model_spec()
    node = Node(machine_log(create_command(spec)))
    node.lead()
    replies = Replies()
    node.leader.open_initialization(hello(initialization_epoch=EPOCH), replies)
    node.log.add(delete())
    node.apply()
    assert replies.refusal is not None
    assert replies.refusal.reason is Reason.NOT_FOUND


def test_an_update_and_the_deletion_in_one_batch() -> None:
    node, spec = started(ranks=1)
    rank = Rank(node, spec, 0)
    node.log.add(*(update_command(spec, block, 0) for block in range(3)), delete())
    node.apply()
    assert rank.replies.refusal is not None
    assert rank.replies.refusal.reason is Reason.NOT_FOUND
