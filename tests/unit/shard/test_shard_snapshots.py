"""A snapshot is the whole state: everything that apply looks at (RULES W6), and installed whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from consensus.core.interface import Configuration, SnapshotMeta
from consensus.runtime.machine import MachineHost
from consensus.storage.filesystem import OsFileSystem
from consensus.storage.snapshots import SnapshotFiles
from paramserver.shard.errors import SnapshotDamaged
from paramserver.shard.machine import ShardMachine
from paramserver.wire.frames import PushKind
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


def trained(optimizer: OptimizerSpec, steps: int = 3) -> ShardMachine:
    spec = model_spec(optimizer=optimizer)
    machine = machine_with(opening_commands(spec))
    for step in range(steps):
        for block in range(3):
            machine.apply(as_entry(update_command(spec, block, step)))
    return machine


def stream(machine: ShardMachine) -> bytes:
    return b"".join(bytes(chunk) for chunk in machine.snapshot())


def cut(data: bytes, size: int) -> Iterator[memoryview]:
    return (memoryview(data)[start : start + size] for start in range(0, len(data), size))


@pytest.mark.parametrize("optimizer", [sgd(0.1), momentum(0.1), adam()], ids=["sgd", "momentum", "adam"])
@pytest.mark.parametrize("chunk_bytes", [7, 4096, 1 << 20])
def test_a_restored_replica_goes_on_with_the_same_bits(optimizer: OptimizerSpec, chunk_bytes: int) -> None:
    machine = trained(optimizer)
    restored = ShardMachine(GROUP)
    restored.restore(cut(stream(machine), chunk_bytes))
    assert stream(restored) == stream(machine)
    spec = model_spec(optimizer=optimizer)
    for block in range(3):
        command = as_entry(update_command(spec, block, 3))
        results = [replica.apply(command) for replica in (machine, restored)]
        assert results[0].digest == results[1].digest  # type: ignore[union-attr]
        assert results[0].crc == results[1].crc  # type: ignore[union-attr]


def test_both_versions_are_in_it() -> None:
    machine = trained(sgd(0.1))
    restored = ShardMachine(GROUP)
    restored.restore(cut(stream(machine), 1000))
    for mine, theirs in zip(machine.shards[MODEL].published, restored.shards[MODEL].published, strict=True):
        for version in (2, 3):
            kept, found = mine.at(version), theirs.at(version)
            assert kept is not None
            assert found is not None
            assert kept[0].tobytes() == found[0].tobytes()
            assert kept[1] == found[1]


def test_a_skipped_step_keeps_one_buffer_for_both_versions() -> None:
    spec = model_spec()
    machine = machine_with(opening_commands(spec))
    machine.apply(as_entry(update_command(spec, 0, 0, kind=PushKind.SKIP)))
    restored = ShardMachine(GROUP)
    restored.restore(cut(stream(machine), 1000))
    block = restored.shards[MODEL].published[0]
    assert block.version == 1
    assert block.weights is block.previous


def test_a_half_initialised_model_is_in_it() -> None:
    spec = model_spec()
    machine = machine_with([create_command(spec), initial_command(spec, 1, epoch=4)])
    restored = ShardMachine(GROUP)
    restored.restore(cut(stream(machine), 100))
    for replica in (machine, restored):
        result = replica.apply(as_entry(initial_command(spec, 1, epoch=3)))
        assert result.why == "EPOCH"  # type: ignore[union-attr]
    assert restored.shards[MODEL].published[0].weights is None


@pytest.mark.parametrize("optimizer", [sgd(0.1), momentum(0.1), adam()], ids=["sgd", "momentum", "adam"])
def test_apply_may_go_on_while_a_snapshot_is_written(optimizer: OptimizerSpec) -> None:
    machine, untouched = trained(optimizer), trained(optimizer)
    chunks = machine.snapshot()
    spec = model_spec(optimizer=optimizer)
    written = [bytes(next(chunks))]
    for step in (3, 4):
        for block in range(3):
            machine.apply(as_entry(update_command(spec, block, step)))
    written += [bytes(chunk) for chunk in chunks]
    assert b"".join(written) == stream(untouched)


def test_an_empty_group_has_a_snapshot_too() -> None:
    restored = trained(sgd(0.1))
    restored.restore(cut(stream(ShardMachine(GROUP)), 10))
    assert restored.shards == {}


def test_damage_is_noticed_and_the_old_state_stays() -> None:
    machine = trained(adam())
    data = stream(machine)
    keeper = trained(sgd(0.1))
    before = stream(keeper)
    random = np.random.default_rng(3)
    middle = len(data) // 2
    bad = [data[:-1], data + b"x", b"", data[:100], b"\0" + data[1:], data[:middle]]
    for place in (9, middle, len(data) - 3):
        bad.append(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    bad += [random.bytes(500) for _ in range(20)]
    bad += [data[:60] + random.bytes(300) for _ in range(20)]
    for wrong in bad:
        with pytest.raises(SnapshotDamaged):
            keeper.restore(cut(wrong, 777))
    assert stream(keeper) == before


def test_what_does_not_decode_stops_the_group_and_not_the_node(tmp_path: Path) -> None:
    """The file's own checks pass, its content is no state: the runtime is told, instead of the process ending."""
    store = SnapshotFiles(OsFileSystem(), str(tmp_path))
    configuration = Configuration(voters=(1,))
    writer = store.create(GROUP, SnapshotMeta(index=5, term=1, configuration=configuration, snapshot_id="s5"))
    writer.write(stream(trained(sgd(0.1)))[:-3])
    meta = writer.commit()
    host = MachineHost(
        group=GROUP, machine=ShardMachine(GROUP), configuration=configuration, node=1, incarnation=1, load=tuple
    )
    unreadable = host.restore(store, meta)
    assert unreadable is not None
    assert "snapshot" in unreadable.problem
    assert not unreadable.damaged, "its file is sound: nothing is to be forgotten for that"
