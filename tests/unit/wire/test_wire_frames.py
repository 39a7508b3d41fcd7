"""Frames by hand are the same message that the generated code writes and reads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramserver.v1 import paramserver_pb2 as pb
from paramserver.wire.frames import (
    BlockFrame,
    BlockStatus,
    Hello,
    PushFrame,
    PushKind,
    decode_block,
    decode_push,
    encode_block,
    encode_push,
    join_frame,
    split_frame,
)

numbers = st.integers(0, 2**62 - 1)
payloads = st.one_of(st.binary(max_size=300), st.integers(0, 70_000).map(bytes))
pushes = st.builds(
    PushFrame,
    block=st.integers(0, 2**32 - 1),
    step=numbers,
    kind=st.sampled_from(PushKind),
    crc=st.integers(0, 2**32 - 1),
    want_weights=st.booleans(),
    payload=payloads,
)
blocks = st.builds(
    BlockFrame,
    block=st.integers(0, 2**32 - 1),
    step=numbers,
    version=numbers,
    status=st.sampled_from(BlockStatus),
    crc=st.integers(0, 2**32 - 1),
    view=numbers,
    term=numbers,
    payload=payloads,
)
HELLO = Hello(
    cluster=bytes(range(16)),
    group=2,
    model=3,
    generation=4,
    placement_epoch=5,
    view=6,
    rank=7,
    lease_epoch=8,
    want_weights=True,
    initialization_epoch=9,
)


@given(pushes)
def test_push_round_trip(frame: PushFrame) -> None:
    data = encode_push(frame)
    assert decode_push(data) == frame
    parsed = pb.PushFrame.FromString(data)
    assert (parsed.header.step, parsed.payload) == (frame.step, frame.payload)
    assert decode_push(parsed.SerializeToString()) == frame


@given(blocks)
def test_block_round_trip(frame: BlockFrame) -> None:
    data = encode_block(frame)
    assert decode_block(data) == frame
    parsed = pb.BlockFrame.FromString(data)
    assert (parsed.header.version, parsed.header.status) == (frame.version, int(frame.status))
    assert decode_block(parsed.SerializeToString()) == frame


def test_hello_round_trip() -> None:
    frame = PushFrame(hello=HELLO)
    assert decode_push(encode_push(frame)) == frame


def test_the_payload_is_a_view_of_the_message() -> None:
    data = encode_push(PushFrame(payload=bytes(1 << 20)))
    payload = np.frombuffer(decode_push(data).payload, np.uint8)
    assert np.shares_memory(payload, np.frombuffer(data, np.uint8))


def test_other_encodings_of_the_same_message_are_read_too() -> None:
    header = pb.PushHeader(step=3, kind=1).SerializeToString()
    payload_first = b"\x7a\x02hi" + b"\x0a" + bytes([len(header)]) + header
    in_two_parts = b"\x0a\x02" + header[:2] + b"\x0a" + bytes([len(header) - 2]) + header[2:] + b"\x7a\x02hi"
    unknown_field = b"\x0a" + bytes([len(header)]) + header + b"\x7a\x02hi" + b"\xa0\x06\x01"
    long_varint = b"\x0a" + bytes([len(header) | 0x80, 0]) + header + b"\x7a\x82\x00hi"
    assert split_frame(payload_first) is split_frame(in_two_parts) is split_frame(unknown_field) is None
    for data in (payload_first, in_two_parts, unknown_field, long_varint):
        frame = decode_push(data)
        assert (frame.step, frame.kind, bytes(frame.payload)) == (3, PushKind.GRADIENT, b"hi")


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, 1 << 20])
def test_lengths_at_the_edges_of_varints(size: int) -> None:
    frame = PushFrame(payload=bytes(size))
    assert decode_push(encode_push(frame)) == frame
    assert pb.PushFrame.FromString(encode_push(frame)).payload == frame.payload


def test_memoryviews_of_arrays_can_be_sent() -> None:
    weights = np.arange(5, dtype=np.float32)
    weights.flags.writeable = False
    frame = BlockFrame(block=0, step=0, version=1, status=BlockStatus.APPLIED, payload=weights.data.cast("B"))
    assert bytes(decode_block(encode_block(frame)).payload) == weights.tobytes()


def test_a_frame_for_several_streams_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[int] = []

    def join(header: bytes, payload: bytes | memoryview) -> bytes:
        joined.append(len(payload))
        return join_frame(header, payload)

    monkeypatch.setattr("paramserver.wire.frames.join_frame", join)
    frame = BlockFrame(block=3, step=0, version=1, status=BlockStatus.APPLIED, payload=bytes(8))
    first = encode_block(frame)
    assert encode_block(frame) is first
    assert joined == [8]
    other = replace(frame, block=4)
    assert (decode_block(first).block, decode_block(encode_block(other)).block) == (3, 4)
    assert joined == [8, 8]
    assert decode_block(first) == frame
