"""A snapshot of a shard costs no more memory than its budget while training goes on (RULES W6)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from consensus.core.interface import Configuration, Entry, EntryKind
from consensus.runtime.machine import MachineHost
from paramserver.shard.machine import ShardMachine
from paramserver.wire.frames import PushKind
from paramserver.wire.layout import Flat
from paramserver.wire.spec import OptimizerSpec, adam, momentum, sgd
from tests.unit.shard.kit import (
    GROUP,
    MODEL,
    as_entry,
    create_command,
    initial_command,
    machine_with,
    model_spec,
    opening_commands,
    update_command,
)

BLOCKS = 8
BLOCK_BYTES = 4096
OPTIMIZERS = pytest.mark.parametrize("optimizer", [sgd(0.1), momentum(0.1), adam()], ids=["sgd", "momentum", "adam"])


def content(machine: ShardMachine) -> bytes:
    return b"".join(bytes(chunk) for chunk in machine.snapshot())


def held_by_state(machine: ShardMachine) -> dict[int, int]:
    shard = machine.shards[MODEL]
    found: dict[int, int] = {}
    for seen, own in zip(shard.published, shard.private, strict=True):
        for buffer in (seen.weights, seen.previous, *own.slots):
            if buffer is not None:
                found[id(buffer)] = buffer.nbytes
    return found


def held_by_snapshot(chunks: Any) -> dict[int, int]:
    """Every array that the half-read stream still refers to, found by looking, not by its own count."""
    found: dict[int, int] = {}

    def look(value: Any) -> None:
        if isinstance(value, list | tuple):
            for item in value:
                look(item)
        for name in ("weights", "previous", "slots"):
            if hasattr(value, name) and not hasattr(value, "__len__"):
                look(getattr(value, name))
        if hasattr(value, "nbytes") and hasattr(value, "dtype"):
            found[id(value)] = value.nbytes

    frame = chunks.gi_frame
    if frame is not None:
        for value in frame.f_locals.values():
            look(value)
    return found


def extra_bytes(machine: ShardMachine, chunks: Iterator[Any]) -> int:
    state = held_by_state(machine)
    return sum(size for key, size in held_by_snapshot(chunks).items() if key not in state)


def updates(spec: Any, steps: range) -> Iterator[Entry]:
    for step in steps:
        for block in range(BLOCKS):
            yield as_entry(update_command(spec, block, step))


@OPTIMIZERS
@pytest.mark.parametrize("budget", [0, 2 * BLOCK_BYTES, 7 * BLOCK_BYTES, 1 << 30])
def test_the_extra_memory_stays_within_the_budget_under_load(optimizer: OptimizerSpec, budget: int) -> None:
    spec = model_spec(optimizer=optimizer, blocks=BLOCKS)
    machine = machine_with(opening_commands(spec))
    for entry in updates(spec, range(2)):
        machine.apply(entry)
    before = content(machine)
    host = MachineHost(
        group=GROUP,
        machine=machine,
        configuration=Configuration((1,)),
        node=1,
        incarnation=1,
        load=tuple,
        budget_bytes=budget,
    )
    host.apply((Entry(1, 1, EntryKind.NOOP, b"", 0),))
    capture = host.capture(1)
    assert capture is not None
    chunks = capture.chunks
    load = [
        Entry(1, index, entry.kind, entry.payload, entry.crc)
        for index, entry in enumerate(updates(spec, range(2, 6)), 2)
    ]
    host.apply(load)
    written, waited, peak = [], 0, 0
    for chunk in chunks:
        written.append(bytes(chunk))
        batch = host.apply(())
        waited += batch.waits
        extra = extra_bytes(machine, chunks)
        assert machine.lent_bytes() == extra, "counted exactly"
        peak = max(peak, extra)
        assert extra <= budget
    assert b"".join(written) == before, "the state of the moment it was asked for"
    host.release(1)
    host.apply(())
    assert host.position()[0] == 1 + len(load)
    assert machine.lent_bytes() == 0
    assert bool(waited) == (budget < 1 << 30)
    if budget == 7 * BLOCK_BYTES:
        assert peak > 4 * BLOCK_BYTES, "the budget is made use of"


def test_slots_change_in_place_again_when_their_block_is_written() -> None:
    spec = model_spec(optimizer=momentum(0.1), blocks=BLOCKS)
    machine = machine_with(opening_commands(spec))
    shard = machine.shards[MODEL]
    chunks = machine.snapshot()
    slots: list[Flat] = [own.slots[0] for own in shard.private]
    next(chunks)
    machine.apply(as_entry(update_command(spec, BLOCKS - 1, 0)))
    assert shard.private[BLOCKS - 1].slots[0] is not slots[BLOCKS - 1]
    for _ in chunks:
        pass
    assert machine.lent_bytes() == 0
    machine.apply(as_entry(update_command(spec, 0, 0)))
    assert shard.private[0].slots[0] is slots[0]


def test_what_is_given_up_costs_nothing_any_more() -> None:
    spec = model_spec(optimizer=adam(), blocks=BLOCKS)
    machine = machine_with(opening_commands(spec))
    chunks = machine.snapshot()
    next(chunks)
    for block in range(BLOCKS):
        machine.apply(as_entry(update_command(spec, block, 0)))
    assert machine.lent_bytes() > BLOCKS * BLOCK_BYTES
    machine.end_snapshot()
    assert machine.lent_bytes() == 0
    assert machine.lent_bytes(as_entry(update_command(spec, 0, 1))) == 0
    del chunks
    assert content(machine) == content(machine)


def test_skipped_steps_and_new_initial_values_count_too() -> None:
    spec = model_spec(optimizer=momentum(0.1), blocks=BLOCKS)
    machine = machine_with(opening_commands(spec))
    chunks = machine.snapshot()
    for step in range(3):
        entry = as_entry(update_command(spec, 0, step, kind=PushKind.SKIP))
        expected = machine.lent_bytes(entry)
        machine.apply(entry)
        assert machine.lent_bytes() == expected == extra_bytes(machine, chunks) == 0, "nothing was replaced"
    entry = as_entry(update_command(spec, 0, 3))
    assert machine.lent_bytes(entry) == BLOCK_BYTES, "the slot"
    machine.apply(entry)
    entry = as_entry(update_command(spec, 0, 4))
    assert machine.lent_bytes(entry) == 2 * BLOCK_BYTES, "and what was current"
    machine.apply(entry)
    assert machine.lent_bytes() == extra_bytes(machine, chunks) == 2 * BLOCK_BYTES

    half = machine_with([create_command(spec), initial_command(spec, 1, epoch=4)])
    chunks = half.snapshot()
    entry = as_entry(initial_command(spec, 1, epoch=5))
    assert half.lent_bytes(entry) == 2 * BLOCK_BYTES
    half.apply(entry)
    assert half.lent_bytes() == 2 * BLOCK_BYTES
