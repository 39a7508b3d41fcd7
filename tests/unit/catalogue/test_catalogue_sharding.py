"""Which blocks of a model go to which group."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from consensus.core.interface import Entry, EntryKind
from paramserver.catalogue import commands
from paramserver.catalogue.commands import BadCommand, CreateModel, Envelope
from paramserver.catalogue.machine import CatalogueMachine
from paramserver.catalogue.sharding import Rule, loads, place, shard_bytes
from paramserver.catalogue.state import Model, Shard
from paramserver.v1 import paramserver_pb2 as pb
from paramserver.wire.checksum import crc32c
from paramserver.wire.layout import Layout
from paramserver.wire.protos import View, spec_to_proto
from paramserver.wire.spec import ModelSpec, Sgd, TensorSpec

BLOCK = 4096


def spec(elements: int, *, block_bytes: int = BLOCK, name: str = "m") -> ModelSpec:
    return ModelSpec(name, (TensorSpec("w", (elements,)),), Sgd(0.1), 1, block_bytes=block_bytes)


def model(number: int, what: ModelSpec, shards: tuple[Shard, ...]) -> Model:
    return Model(
        model=number, generation=1, spec=what, shards=shards, placement_epoch=1, view=View(1, 0, (0,)), leases=()
    )


def placed(groups: tuple[int, ...], *specs: ModelSpec) -> list[Model]:
    models: list[Model] = []
    for number, what in enumerate(specs, start=1):
        models.append(model(number, what, place(Rule.BY_BYTES, what, number, loads(groups, models))))
    return models


def check_cover(one: Model) -> None:
    covered = [block for shard in one.shards for block in range(shard.first_block, shard.first_block + shard.blocks)]
    assert covered == list(range(Layout(one.spec).blocks))
    assert len({shard.group for shard in one.shards}) == len(one.shards)
    assert all(shard.blocks for shard in one.shards)


@pytest.mark.parametrize("groups", [1, 3, 4, 16])
@pytest.mark.parametrize("blocks", [1, 2, 7, 64, 1000])
def test_one_model_is_as_even_as_whole_blocks_allow(groups: int, blocks: int) -> None:
    (one,) = placed(tuple(range(1, groups + 1)), spec(blocks * BLOCK // 4))
    check_cover(one)
    counts = [shard.blocks for shard in one.shards] + [0] * (groups - len(one.shards))
    assert max(counts) - min(counts) <= 1


def test_a_new_model_goes_where_least_is() -> None:
    # 2 blocks of 1 MiB in groups 1 and 2; four smaller ones level group 3 with them as far as they go.
    models = placed((1, 2, 3), spec(1 << 19, block_bytes=1 << 20), spec(4 * 1024, name="small"))
    assert {shard.group for shard in models[0].shards} == {1, 2}
    assert models[1].shards == (Shard(3, 0, 4),)


def test_the_short_last_block_goes_where_most_is() -> None:
    (one,) = placed((1, 2, 3), spec(3 * BLOCK // 4 + 1))
    assert one.shards[-1].blocks == 2
    assert shard_bytes(Layout(one.spec), one.shards[-1]) == BLOCK + 4


def test_any_models_leave_groups_within_one_block_of_each_other() -> None:
    source = random.Random(4)
    for _ in range(100):
        groups = tuple(range(1, source.choice((1, 2, 3, 5, 16)) + 1))
        sizes = [source.choice((4096, 8192, 65536)) for _ in range(12)]
        specs = [spec(source.randint(1, 300_000), block_bytes=size, name=str(i)) for i, size in enumerate(sizes)]
        models: list[Model] = []
        for number, what in enumerate(specs, start=1):
            models.append(model(number, what, place(Rule.BY_BYTES, what, number, loads(groups, models))))
            check_cover(models[-1])
            held = loads(groups, models)
            assert sum(held.values()) == sum(one.spec.parameters * 4 for one in models)
            # Never further apart than the largest block so far.
            assert max(held.values()) - min(held.values()) <= max(sizes[:number])


def test_equal_small_models_take_turns() -> None:
    models = placed((1, 2, 3), *(spec(10, name=str(i)) for i in range(6)))
    assert sorted(one.shards[0].group for one in models) == [1, 1, 2, 2, 3, 3]


def create(rule: int) -> bytes:
    command = pb.CatalogueCommand(placement_rule=rule, create_model=spec_to_proto(spec(10 * BLOCK // 4)))
    return commands.PREFIX + command.SerializeToString()


def test_a_command_keeps_its_rule_and_an_unknown_rule_is_refused() -> None:
    assert commands.decode(create(0)).command == CreateModel(spec(10 * BLOCK // 4), Rule.EVEN)
    assert commands.decode(create(1)).command == CreateModel(spec(10 * BLOCK // 4), Rule.BY_BYTES)
    with pytest.raises(BadCommand):
        commands.decode(create(2))
    for rule in Rule:
        command = CreateModel(spec(1), rule)
        assert commands.decode(commands.encode(Envelope(command, 1, 1))).command == command


def test_a_log_of_an_earlier_build_places_as_it_did() -> None:
    """Its commands name no rule: even ranges, rotated by the model's id, whatever the groups hold."""
    machine = CatalogueMachine((1, 2, 3))
    opened = pb.CatalogueCommand(
        open_session=pb.OpenSessionRequest(client=b"c" * 16, secret_digest=b"d" * 32, name="x")
    )
    first = pb.CatalogueCommand(create_model=spec_to_proto(spec(10 * BLOCK // 4)))
    second = pb.CatalogueCommand(create_model=spec_to_proto(spec(2 * BLOCK // 4, name="n")))
    for sequence, message in enumerate((first, second), start=1):
        message.session, message.sequence, message.secret_digest = 1, sequence, b"d" * 32
    for index, message in enumerate((opened, first, second), start=1):
        payload = commands.PREFIX + message.SerializeToString()
        assert machine.apply(Entry(1, index, EntryKind.NORMAL, payload, crc32c(payload))).ok
    assert machine.models[1].shards == (Shard(1, 0, 3), Shard(2, 3, 3), Shard(3, 6, 4))
    assert machine.models[2].shards == (Shard(2, 0, 1), Shard(3, 1, 1))


def test_the_same_from_the_same() -> None:
    what = spec(123_457)
    models = placed((1, 2, 3), spec(50_000), spec(3, name="n"))
    again = [replace(one) for one in models]
    held = loads((1, 2, 3), models)
    assert held == loads((1, 2, 3), again)
    assert place(Rule.BY_BYTES, what, 3, held) == place(Rule.BY_BYTES, what, 3, dict(held))


def test_a_machine_that_was_restored_places_as_the_one_that_was_not() -> None:
    machine = CatalogueMachine((1, 2, 3))
    payload = (
        commands.PREFIX
        + pb.CatalogueCommand(
            open_session=pb.OpenSessionRequest(client=b"c" * 16, secret_digest=b"d" * 32, name="x")
        ).SerializeToString()
    )
    machine.apply(Entry(1, 1, EntryKind.NORMAL, payload, crc32c(payload)))

    def create_at(one: CatalogueMachine, index: int, what: ModelSpec) -> None:
        payload = commands.encode(Envelope(CreateModel(what), 1, index, b"d" * 32))
        assert one.apply(Entry(1, index, EntryKind.NORMAL, payload, crc32c(payload))).ok

    create_at(machine, 2, spec(5000))
    other = CatalogueMachine((1, 2, 3))
    other.restore(memoryview(bytes(chunk)) for chunk in machine.snapshot())
    for one in (machine, other):
        create_at(one, 3, spec(3000, name="n"))
    assert machine.models[2].shards == other.models[2].shards
    assert {shard.group for shard in machine.models[2].shards} == {2, 3}
