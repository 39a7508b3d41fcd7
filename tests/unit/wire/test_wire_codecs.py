"""Codecs against exact arithmetic: to nearest, ties to even, with subnormals, infinities and NaN (RULES S12, S13)."""

from __future__ import annotations

import struct
import threading
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramserver.optim.interface import CHUNK_ELEMENTS
from paramserver.wire import codecs
from paramserver.wire.codecs import LARGEST, PIECE_ELEMENTS, Codec, Encoded, check_bound, check_size, decode, encode
from paramserver.wire.errors import Reason, Refusal
from paramserver.wire.spec import BLOCK_BYTES_MAX, codec_named
from paramserver.wire.tree import TreeSum, tree_sum

LOSSY = (Codec.BF16, Codec.FP16)
SHAPES = {Codec.BF16: (8, -126, 127), Codec.FP16: (11, -14, 15)}
"""Bits of the significand, least and greatest exponent of a normal number."""
NAN = {Codec.BF16: 0x7FC0, Codec.FP16: 0x7E00}
INFINITE = {Codec.BF16: 0x7F80, Codec.FP16: 0x7C00}
ALL_SHORTS = np.arange(1 << 16, dtype=np.uint16)


def floats(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


def from_bits(*bits: int) -> np.ndarray:
    return np.array(bits, np.uint32).view(np.float32)


def shorts(codec: Codec, values: np.ndarray) -> list[int]:
    return np.frombuffer(encode(codec, values), np.uint16).tolist()


def value_of(codec: Codec, short: int) -> Fraction:
    """A finite number by the definition of its format, exactly."""
    digits, least, _ = SHAPES[codec]
    exponent, significand = (short & 0x7FFF) >> (digits - 1), short & ((1 << (digits - 1)) - 1)
    if exponent:
        significand |= 1 << (digits - 1)
    number = Fraction(significand) * Fraction(2) ** (max(exponent, 1) - 1 + least - (digits - 1))
    return -number if short & 0x8000 else number


def rounded(codec: Codec, value: float) -> int:
    """What a finite float32 is written as, by exact arithmetic: the nearest of two neighbours, of two equally near ones
    the even one."""
    sign = 0x8000 if struct.unpack("<I", struct.pack("<f", value))[0] >> 31 else 0
    wanted = abs(Fraction(value))
    low, high = 0, INFINITE[codec]
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if value_of(codec, middle) <= wanted else (low, middle)
    below = wanted - value_of(codec, low)
    above = (
        value_of(codec, high) - wanted
        if high < INFINITE[codec]
        else Fraction(2) ** (SHAPES[codec][2] + 1) - wanted  # where the next number would be
    )
    if below == above:
        return sign | (low if low % 2 == 0 else high)
    return sign | (low if below < above else high)


# --- known answers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "number", "expected"),
    [
        (Codec.BF16, 0.0, 0x0000),
        (Codec.BF16, -0.0, 0x8000),
        (Codec.BF16, 1.0, 0x3F80),
        (Codec.BF16, -2.0, 0xC000),
        (Codec.BF16, 3.140625, 0x4049),
        (Codec.BF16, 1.00390625, 0x3F80),  # 1 + 2^-8, a tie: to even, which is down
        (Codec.BF16, 1.01171875, 0x3F82),  # 1 + 3 * 2^-8, a tie: to even, which is up
        (Codec.BF16, 1.0039064, 0x3F81),  # just above the tie
        (Codec.BF16, 2.0**-133, 0x0001),  # the least subnormal
        (Codec.BF16, 2.0**-134, 0x0000),  # half of it, a tie
        (Codec.BF16, 1.5 * 2.0**-134, 0x0001),
        (Codec.BF16, 2.0**-126, 0x0080),
        (Codec.BF16, float.fromhex("0x1.fep127"), 0x7F7F),  # the greatest
        (Codec.BF16, float.fromhex("0x1.fefffep127"), 0x7F7F),
        (Codec.BF16, float.fromhex("0x1.ffp127"), 0x7F80),  # half way to 2^128, a tie
        (Codec.BF16, float.fromhex("-0x1.fffffep127"), 0xFF80),
        (Codec.BF16, float("inf"), 0x7F80),
        (Codec.BF16, float("-inf"), 0xFF80),
        (Codec.FP16, 0.0, 0x0000),
        (Codec.FP16, -0.0, 0x8000),
        (Codec.FP16, 1.0, 0x3C00),
        (Codec.FP16, -2.0, 0xC000),
        (Codec.FP16, 65504.0, 0x7BFF),
        (Codec.FP16, 65519.996, 0x7BFF),
        (Codec.FP16, 65520.0, 0x7C00),  # a tie with 65536
        (Codec.FP16, -1e30, 0xFC00),
        (Codec.FP16, 2.0**-24, 0x0001),
        (Codec.FP16, 2.0**-25, 0x0000),
        (Codec.FP16, 2.0**-25 + 2.0**-48, 0x0001),
        (Codec.FP16, 2.0**-14 - 2.0**-25, 0x0400),  # a tie between the greatest subnormal and the least normal number
        (Codec.FP16, 2.0**-149, 0x0000),
        (Codec.FP16, 1.00048828125, 0x3C00),  # 1 + 2^-11, a tie
        (Codec.FP16, 1.00146484375, 0x3C02),
        (Codec.FP16, float("inf"), 0x7C00),
        (Codec.FP16, float("-inf"), 0xFC00),
    ],
)
def test_known_answers(codec: Codec, number: float, expected: int) -> None:
    assert shorts(codec, floats(number)) == [expected]


@pytest.mark.parametrize("codec", LOSSY)
def test_every_encoding_has_the_value_of_its_definition_and_encodes_to_itself(codec: Codec) -> None:
    decoded = decode(codec, ALL_SHORTS.tobytes(), ALL_SHORTS.size)
    magnitude = ALL_SHORTS & 0x7FFF
    finite, infinite, nan = (magnitude < INFINITE[codec], magnitude == INFINITE[codec], magnitude > INFINITE[codec])
    for short in ALL_SHORTS[finite].tolist():
        assert Fraction(float(decoded[short])) == value_of(codec, short)
    assert np.signbit(decoded[~nan]).tolist() == (ALL_SHORTS[~nan] >= 0x8000).tolist()
    assert np.isinf(decoded).tolist() == infinite.tolist()
    assert np.isnan(decoded).tolist() == nan.tolist()
    again = np.frombuffer(encode(codec, decoded), np.uint16)
    assert np.array_equal(again[~nan], ALL_SHORTS[~nan])
    assert set(again[nan].tolist()) == {NAN[codec]}


@pytest.mark.parametrize("codec", LOSSY)
def test_every_nan_stays_one_and_in_one_form(codec: Codec) -> None:
    """The least significant payloads would be cut off, and make an infinity of it; the greatest would carry over."""
    nans = from_bits(0x7F800001, 0xFF800001, 0x7FC00000, 0xFFC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F80FFFF, 0x7F808000)
    assert np.isnan(nans).all()
    assert shorts(codec, nans) == [NAN[codec]] * 8
    among = floats(1.0, 2.0, 3.0, 4.0)
    among[2] = nans[0]
    assert shorts(codec, among)[2] == NAN[codec]
    assert shorts(codec, among)[:2] == shorts(codec, floats(1.0, 2.0))


# --- against exact arithmetic ---------------------------------------------------------------------------------------


def bits32() -> Any:
    """Any float32, and often one close to where rounding turns: few bits set below those that stay."""
    close = st.builds(
        lambda high, low: (high << 12 | low) & 0xFFFFFFFF,
        st.integers(0, (1 << 20) - 1),
        st.sampled_from((0, 1, 0xFFF, 0x800, 0x801, 0x7FF)),
    )
    tied = st.builds(
        lambda high, low: high << 16 | low, st.integers(0, 0xFFFF), st.sampled_from((0, 0x7FFF, 0x8000, 0x8001))
    )
    of_halfs = st.builds(
        lambda sign, exponent, rest: sign << 31 | exponent << 23 | rest,
        st.integers(0, 1),
        st.integers(100, 145),
        st.integers(0, (1 << 23) - 1),
    )
    return st.one_of(st.integers(0, (1 << 32) - 1), close, tied, of_halfs)


@pytest.mark.parametrize("codec", LOSSY)
@given(st.lists(bits32(), min_size=1, max_size=40))
def test_each_number_goes_to_the_nearest(codec: Codec, bits: list[int]) -> None:
    values = from_bits(*bits)
    found = shorts(codec, values)
    for value, short in zip(values.tolist(), found, strict=True):
        if np.isnan(value):
            assert short == NAN[codec]
        elif np.isinf(value):
            assert short == (INFINITE[codec] | (0x8000 if value < 0 else 0))
        else:
            assert short == rounded(codec, value), value.hex()


@pytest.mark.parametrize("codec", tuple(Codec))
@given(st.lists(bits32(), min_size=1, max_size=40))
def test_what_is_not_finite_is_found_before_and_after_encoding(codec: Codec, bits: list[int]) -> None:
    values = from_bits(*bits)
    encoded = codecs.received(codec, encode(codec, values), values.size)
    decoded = codecs.floats(encoded)
    wrong = np.flatnonzero(~np.isfinite(decoded))
    assert codecs.finite(encoded) == (wrong.size == 0)
    assert codecs.first_beyond(codec, values) == (int(wrong[0]) if wrong.size else None)
    if wrong.size:
        assert codecs.first_non_finite(encoded) == wrong[0]


def test_half_precision_as_numpy_has_it() -> None:
    random = np.random.default_rng(1)
    bits = random.integers(0, 1 << 32, 1 << 18, dtype=np.uint64).astype(np.uint32)
    values = bits.view(np.float32)
    values = values[~np.isnan(values)]
    with np.errstate(all="ignore"):
        expected = values.astype(np.float16)
    assert np.array_equal(np.frombuffer(encode(Codec.FP16, values), np.uint16), expected.view(np.uint16))


# --- blocks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", tuple(Codec))
@pytest.mark.parametrize("elements", [1, 2, 7, PIECE_ELEMENTS - 1, PIECE_ELEMENTS + 1, 3 * PIECE_ELEMENTS + 5])
def test_a_block_of_any_size_in_pieces_and_at_any_address(codec: Codec, elements: int) -> None:
    values = np.random.default_rng(elements).standard_normal(elements, dtype=np.float32)
    values[-1] = np.inf
    payload = bytes(encode(codec, values))
    assert len(payload) == codecs.payload_bytes(codec, elements)
    one_by_one = b"".join(bytes(encode(codec, values[start : start + 1])) for start in range(0, elements, 997))
    width = codecs.payload_bytes(codec, 1)
    picked = b"".join(payload[start * width : (start + 1) * width] for start in range(0, elements, 997))
    assert picked == one_by_one
    whole = decode(codec, payload, elements)
    shifted = memoryview(b"x" + payload)[1:]  # as in a frame, where nothing is aligned
    out = np.zeros(elements + 1, np.float32)
    assert decode(codec, shifted, elements, out[:-1]) is not None
    assert out[:-1].tobytes() == whole.tobytes()
    assert out[-1] == 0.0
    assert not codecs.finite(codecs.received(codec, shifted, elements))
    assert np.isinf(codecs.piece(codecs.received(codec, payload, elements), slice(elements - 1, elements), whole)[0])


def test_optimizers_work_on_pieces_that_codecs_can_decode() -> None:
    assert CHUNK_ELEMENTS <= PIECE_ELEMENTS


@pytest.mark.parametrize("codec", LOSSY)
def test_encoding_into_given_bytes_writes_these_and_no_more(codec: Codec) -> None:
    buffer = np.full(2 * 5 + 4, 0xAB, np.uint8)
    encode(codec, floats(1, 2, 3, 4, 5), buffer[2:-2])
    assert bytes(buffer[:2]) == bytes(buffer[-2:]) == b"\xab\xab"
    assert bytes(buffer[2:-2]) == bytes(encode(codec, floats(1, 2, 3, 4, 5)))
    assert decode(codec, bytes(buffer[2:-2]), 5).tolist() == [1, 2, 3, 4, 5]


def test_threads_do_not_share_scratch_memory() -> None:
    values = [np.full(4 * PIECE_ELEMENTS, number, np.float32) for number in (1.5, -3.0)]
    expected = [bytes(encode(Codec.BF16, one)) for one in values]
    wrong: list[int] = []
    begin = threading.Barrier(2)

    def work(which: int) -> None:
        begin.wait(10)
        for _ in range(50):
            if bytes(encode(Codec.BF16, values[which])) != expected[which]:
                wrong.append(which)

    threads = [threading.Thread(target=work, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert wrong == []


# --- sums -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from((*Codec, None)), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_encoded_contributions_sum_like_what_they_decode_to(kinds: list[Codec | None], random: Any) -> None:
    """Whatever order they come in, mixed with each other and with empty ones (RULES S4)."""
    elements = 300
    parts: list[codecs.Values | None] = []
    for rank, codec in enumerate(kinds):
        values = np.random.default_rng(rank).standard_normal(elements, dtype=np.float32)
        parts.append(None if codec is None else codecs.received(codec, encode(codec, values), elements))
    total, reference = TreeSum(len(kinds)), TreeSum(len(kinds))
    for rank in range(len(kinds)):
        one = parts[rank]
        reference.add(rank, None if one is None else codecs.floats(one).copy())
    order = list(range(len(kinds)))
    random.shuffle(order)
    before = [bytes(one.payload) for one in parts if isinstance(one, Encoded)]
    for rank in order:
        total.add(rank, parts[rank])
    out, expected = np.empty(elements, np.float32), np.empty(elements, np.float32)
    assert total.finish(out).tobytes() == reference.finish(expected).tobytes()
    assert [bytes(one.payload) for one in parts if isinstance(one, Encoded)] == before


def test_sums_are_not_rounded_to_the_codec() -> None:
    """1 + 2^-8 is no bf16; the sum of two that are is fp32."""
    encoded: list[Any] = [
        codecs.received(Codec.BF16, encode(Codec.BF16, floats(number)), 1) for number in (1.0, 2.0**-8)
    ]
    total = TreeSum(2)
    for rank, one in enumerate(encoded):
        total.add(rank, one)
    assert total.finish(np.empty(1, np.float32)).tolist() == [1.00390625]
    assert tree_sum([floats(1.0), floats(2.0**-8)]).tolist() == [1.00390625]


# --- bounds and names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("codec", "width"), [(Codec.FP32, 4), (Codec.BF16, 2), (Codec.FP16, 2)])
@pytest.mark.parametrize("off", [-1, 1, -1000])
def test_another_size_is_refused_with_both_numbers(codec: Codec, width: int, off: int) -> None:
    size = 1000 * width + off
    with pytest.raises(Refusal) as caught:
        decode(codec, bytes(size), 1000)
    assert (caught.value.code, caught.value.field) == ("INVALID_ARGUMENT", "payload")
    for part in (f"{1000 * width} bytes", f"{size} bytes", codec.name):
        assert part in caught.value.message


@pytest.mark.parametrize("codec", [0, 4, 77, -1])
def test_an_unknown_codec_is_refused_by_name(codec: int) -> None:
    with pytest.raises(Refusal) as caught:
        check_size(codec, 4, 1)
    assert (caught.value.code, caught.value.field, caught.value.expected) == (
        "INVALID_ARGUMENT",
        "codec",
        "one of FP32, BF16, FP16",
    )


@pytest.mark.parametrize("codec", tuple(Codec))
def test_a_payload_that_decodes_to_more_than_a_block_is_refused_before_that(codec: Codec) -> None:
    most = codecs.payload_bytes(codec, BLOCK_BYTES_MAX // 4)
    check_bound(codec, most)
    with pytest.raises(Refusal) as caught:
        check_bound(codec, most + 1)
    assert (caught.value.reason, caught.value.code) == (Reason.TOO_LARGE, "RESOURCE_EXHAUSTED")
    assert codec.name in caught.value.message


def test_values_of_another_kind_are_a_mistake_of_ours() -> None:
    for wrong in (np.zeros(4), np.zeros(8, np.float32)[::2]):
        with pytest.raises(ValueError, match="cannot encode"):
            encode(Codec.BF16, wrong)


@pytest.mark.parametrize("codec", tuple(Codec))
def test_the_largest_number_is_the_largest(codec: Codec) -> None:
    largest = floats(LARGEST[codec])
    assert codecs.first_beyond(codec, largest) is None
    assert decode(codec, bytes(encode(codec, largest)), 1)[0] == LARGEST[codec]
    if codec is not Codec.FP32:
        step = Fraction(2) ** (SHAPES[codec][2] - SHAPES[codec][0] + 1)
        assert codecs.first_beyond(codec, floats(float(Fraction(LARGEST[codec]) + step / 2))) == 0


def test_names_as_people_write_them() -> None:
    assert [codec_named(name) for name in ("fp32", "bf16", "fp16", "bfloat16", Codec.FP16)] == [
        Codec.FP32,
        Codec.BF16,
        Codec.FP16,
        Codec.BF16,
        Codec.FP16,
    ]
    for wrong in ("int8", "", "BF16 ", 2, None):
        with pytest.raises(ValueError, match="'fp32', 'bf16', 'fp16'"):
            codec_named(wrong, "log_codec")  # type: ignore[arg-type]
