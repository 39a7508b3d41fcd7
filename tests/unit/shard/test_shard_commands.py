"""The format of the log's commands is fixed; these bytes must never come out otherwise."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from paramserver.shard.commands import (
    HEADER_BYTES,
    Command,
    InitialBlock,
    OpenShard,
    SetView,
    UpdateBlock,
    decode,
    encode,
    encode_update,
    new_buffer,
)
from paramserver.shard.errors import CommandError
from paramserver.wire.frames import PushKind
from paramserver.wire.protos import View
from tests.unit.shard.kit import create_command, model_spec

COMMANDS: list[Command] = [
    UpdateBlock(
        model=2**40,
        generation=3,
        view=9,
        block=17,
        step=2**33,
        kind=PushKind.SKIP,
        contributors=2**64 - 1,
        count=64,
        elements=1024,
        learning_rate=0.25,
    ),
    create_command(model_spec()),
    OpenShard(model=1, generation=2, epoch=3),
    SetView(model=1, generation=2, view=View(3, 4, (5, 6, 0))),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: type(command).__name__)
def test_round_trip(command: Command) -> None:
    assert decode(encode(command)) == command


def test_round_trip_with_values() -> None:
    values = np.arange(5, dtype=np.float32)
    initial = decode(encode(InitialBlock(model=1, generation=1, epoch=7, block=2, elements=5, values=values)))
    assert isinstance(initial, InitialBlock)
    assert initial.values is not None
    assert initial.values.tolist() == values.tolist()
    assert (initial.epoch, initial.block) == (7, 2)


def test_the_header_byte_by_byte() -> None:
    command = UpdateBlock(
        model=1,
        generation=2,
        view=3,
        block=4,
        step=5,
        kind=PushKind.GRADIENT,
        contributors=6,
        count=7,
        elements=1,
        learning_rate=0.5,
        values=np.array([1.0], np.float32),
    )
    expected = struct.pack("<BBBBIQIIQQQQIIf", 1, 1, 1, 1, 1, 1, 2, 4, 5, 3, 0, 6, 7, 1, 0.5)
    assert bytes(encode(command)) == expected + bytes(HEADER_BYTES - len(expected)) + struct.pack("<f", 1.0)


def test_the_buffer_of_a_sum_is_the_command() -> None:
    buffer, place = new_buffer(3)
    place.view(np.float32)[:] = (1.0, 2.0, 3.0)
    command = UpdateBlock(
        model=1, generation=1, view=1, block=0, step=0, kind=PushKind.GRADIENT, contributors=1, count=1, elements=3
    )
    payload = encode_update(command, buffer)
    assert np.shares_memory(np.frombuffer(payload, np.uint8), buffer)
    assert payload.readonly
    decoded = decode(payload)
    assert isinstance(decoded, UpdateBlock)
    assert isinstance(decoded.values, np.ndarray)
    assert np.shares_memory(decoded.values, buffer)


def test_values_are_aligned_for_vector_instructions() -> None:
    _, place = new_buffer(1000)
    assert place.ctypes.data % 16 == 0


@pytest.mark.parametrize(
    ("offset", "value"),
    [(0, 4), (1, 2), (2, 0), (2, 4), (3, 0), (60, 2)],
    ids=["kind", "format", "what 0", "what initial", "codec", "elements"],
)
def test_header_fields_out_of_range(offset: int, value: int) -> None:
    command = UpdateBlock(
        model=1,
        generation=1,
        view=1,
        block=0,
        step=0,
        kind=PushKind.GRADIENT,
        contributors=1,
        count=1,
        elements=1,
        values=np.zeros(1, np.float32),
    )
    data = bytearray(encode(command))
    data[offset] = value
    with pytest.raises(CommandError):
        decode(bytes(data))


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), -1.0])
def test_a_bad_learning_rate(rate: float) -> None:
    data = bytearray(encode(COMMANDS[0]))
    struct.pack_into("<f", data, 64, rate)
    with pytest.raises(CommandError, match="learning rate"):
        decode(bytes(data))
