"""Errors survive the way over the wire, and foreign text in them does no harm."""

from __future__ import annotations

import pytest

from paramserver.wire import allocator, checksum, codecs
from paramserver.wire.errors import (
    CODES,
    RETRYABLE,
    TEXT_CHARACTERS_MAX,
    Problem,
    Reason,
    Refusal,
    invalid,
    refuse_problems,
    shown,
)


def test_every_reason_has_a_code() -> None:
    assert set(CODES) == set(Reason)
    assert set(Reason) >= RETRYABLE


@pytest.mark.parametrize("reason", Reason)
def test_round_trip(reason: Reason) -> None:
    original = Refusal(
        reason,
        "why",
        field="step",
        expected="1",
        received="2",
        hint="try",
        leader_address="a:1",
        group=1,
        term=2,
        view=3,
        version=4,
        retry_after_ms=5,
        holder="w",
        lease_ends_ms=6,
        epoch=7,
        rank=8,
    )
    back = Refusal.from_detail(original.code, original.message, original.detail())
    assert vars(back) == vars(original)
    assert back.retryable == original.retryable


@pytest.mark.parametrize("detail", [None, b"", b"\xff\xff", b"\x0a\x03new"])
def test_without_detail_the_code_decides(detail: bytes | None) -> None:
    assert Refusal.from_detail("UNAVAILABLE", "gone", detail).retryable
    unknown = Refusal.from_detail("DATA_LOSS", "what", detail)
    assert (unknown.reason, unknown.code, unknown.retryable) == (Reason.INTERNAL, "DATA_LOSS", False)


def test_foreign_text_is_escaped_and_cut() -> None:
    assert shown("a\x1b[31mred\n") == "a\\x1b[31mred\\n"
    assert shown("\u202egnp.exe") == "\\u202egnp.exe"
    assert len(shown("x" * 10_000)) == TEXT_CHARACTERS_MAX
    assert "\n" not in invalid("name", "one line", "two\nlines").message
    assert shown("\udcff") == "\\udcff"


def test_problems_are_refused_together() -> None:
    refuse_problems([])
    with pytest.raises(Refusal) as caught:
        refuse_problems([Problem("a", "1", "2"), Problem("b", "3", "4")])
    assert caught.value.message == "a: expected 1, received 2; b: expected 3, received 4"
    assert (caught.value.field, caught.value.code) == ("a", "INVALID_ARGUMENT")


def test_crc_is_castagnoli_and_can_be_continued() -> None:
    assert checksum.crc32c(b"123456789") == 0xE3069283
    assert checksum.crc32c(b"6789", checksum.crc32c(b"12345")) == 0xE3069283


def test_digest_does_not_see_where_parts_end() -> None:
    assert checksum.digest([b"ab", memoryview(b"c")]) == checksum.digest([b"abc"])
    assert len(checksum.digest([])) == checksum.DIGEST_BYTES


def test_codec_round_trip_without_a_copy() -> None:
    import numpy as np

    weights = np.arange(7, dtype=np.float32)
    encoded = codecs.encode(codecs.Codec.FP32, weights)
    decoded = codecs.decode(codecs.Codec.FP32, encoded, 7)
    assert np.shares_memory(decoded, weights)
    assert codecs.payload_bytes(codecs.Codec.FP32, 7) == len(encoded) == 28
    with pytest.raises(ValueError, match="cannot encode"):
        codecs.encode(codecs.Codec.FP32, weights.astype(np.float64))


def test_memory_settings_can_be_left_alone() -> None:
    assert "as it is" in allocator.keep_memory({"PARAMSERVER_MALLOC": "default"})
