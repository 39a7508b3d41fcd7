"""FAULTS, bad input 1 and 2, on the frames of the hot path: refused in words, never a traceback, nothing allocated."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramserver.v1 import paramserver_pb2 as pb
from paramserver.wire.errors import Reason, Refusal
from paramserver.wire.frames import PAYLOAD_BYTES_MAX, PushFrame, decode_block, decode_push, encode_push, join_frame

DECODERS = [decode_push, decode_block]


def refusal_of(decode: Callable[[bytes], Any], data: bytes) -> Refusal | None:
    """None: by chance it was a frame. Any other exception fails the test."""
    try:
        decode(data)
    except Refusal as refusal:
        return refusal
    return None


@pytest.mark.parametrize("decode", DECODERS)
@given(data=st.binary(max_size=200))
def test_random_bytes(decode: Callable[[bytes], Any], data: bytes) -> None:
    refusal = refusal_of(decode, data)
    if refusal is not None:
        assert refusal.code in ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED")
        assert refusal.field


@pytest.mark.parametrize("decode", DECODERS)
@given(header=st.binary(max_size=60), payload=st.binary(max_size=60))
def test_random_headers(decode: Callable[[bytes], Any], header: bytes, payload: bytes) -> None:
    refusal = refusal_of(decode, join_frame(header, payload))
    assert refusal is None or refusal.code == "INVALID_ARGUMENT"


def test_truncated_messages() -> None:
    data = encode_push(PushFrame(step=5, payload=b"x" * 300))
    header_end = data.index(b"\x7a")
    for end in range(len(data)):
        if end == header_end:
            continue  # a whole frame without payload: its size is checked against the block's later
        with pytest.raises(Refusal) as caught:
            decode_push(data[:end])
        assert caught.value.code == "INVALID_ARGUMENT"


def test_a_length_that_lies() -> None:
    for length in (b"\xff\xff\xff\xff\x0f", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"):
        with pytest.raises(Refusal):
            decode_push(b"\x0a\x02\x18\x05\x7a" + length + b"xx")


def test_a_payload_over_the_limit() -> None:
    with pytest.raises(Refusal) as caught:
        decode_push(encode_push(PushFrame(payload=bytes(PAYLOAD_BYTES_MAX + 1))))
    assert (caught.value.reason, caught.value.code) == (Reason.TOO_LARGE, "RESOURCE_EXHAUSTED")
    assert str(PAYLOAD_BYTES_MAX) in caught.value.message


@pytest.mark.parametrize("codec", [pb.BF16, pb.FP16])
def test_a_payload_that_would_decode_to_more_than_any_block(codec: Any) -> None:
    """Within the limit as bytes, twice as much as floats."""
    for decode, header in (
        (decode_push, pb.PushHeader(kind=pb.GRADIENT, codec=codec)),
        (decode_block, pb.BlockHeader(status=pb.APPLIED, codec=codec)),
    ):
        serialized = header.SerializeToString()  # type: ignore[attr-defined]
        decode(join_frame(serialized, bytes(PAYLOAD_BYTES_MAX // 2)))
        tracemalloc.start()
        try:
            data = join_frame(serialized, bytes(PAYLOAD_BYTES_MAX // 2 + 2))
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            with pytest.raises(Refusal) as caught:
                decode(data)
            assert tracemalloc.get_traced_memory()[1] - before < 64 << 10
        finally:
            tracemalloc.stop()
        assert (caught.value.reason, caught.value.code, caught.value.field) == (
            Reason.TOO_LARGE,
            "RESOURCE_EXHAUSTED",
            "payload",
        )
        assert str(PAYLOAD_BYTES_MAX // 2) in caught.value.message


@pytest.mark.parametrize(
    ("header", "field"),
    [
        (pb.PushHeader(), "kind"),
        (pb.PushHeader(kind=9), "kind"),  # type: ignore[arg-type]
        (pb.PushHeader(kind=1, codec=77), "codec"),  # type: ignore[arg-type]
        (pb.PushHeader(kind=1, step=2**63), "step"),
        (pb.PushHeader(hello=pb.PushHello()), "hello.protocol"),
        (pb.PushHeader(hello=pb.PushHello(protocol=1, cluster=bytes(16), weights_codec=77)), "hello.weights_codec"),  # type: ignore[arg-type]
        (pb.PushHeader(hello=pb.PushHello(protocol=2, cluster=bytes(16))), "hello.protocol"),
        (pb.PushHeader(hello=pb.PushHello(protocol=1, cluster=b"short")), "hello.cluster"),
        (pb.PushHeader(hello=pb.PushHello(protocol=1, cluster=bytes(16), view=2**64 - 1)), "hello.view"),
        (pb.PushHeader(hello=pb.PushHello(protocol=1, cluster=bytes(16), lease_epoch=2**63)), "hello.lease_epoch"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_fields_out_of_range(header: Any, field: str) -> None:
    with pytest.raises(Refusal) as caught:
        decode_push(join_frame(header.SerializeToString(), b""))
    assert (caught.value.field, caught.value.code) == (field, "INVALID_ARGUMENT")
    assert caught.value.expected


def test_a_first_frame_carries_no_payload() -> None:
    header = pb.PushHeader(hello=pb.PushHello(protocol=1, cluster=bytes(16)))
    with pytest.raises(Refusal) as caught:
        decode_push(join_frame(header.SerializeToString(), b"x"))
    assert caught.value.field == "payload"
