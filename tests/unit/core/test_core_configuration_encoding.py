"""The one encoding of configurations: what goes in comes out, and nothing else gets in (bad input row 17)."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.core.configuration import (
    MEMBERS_MAX,
    decode_configuration,
    encode_configuration,
    members_of,
    next_replica_of,
    node_of,
    problem_of,
)
from consensus.core.interface import Configuration, Home

FULL = Configuration(
    (1, 65536, 3),
    learners=(65540,),
    outgoing=(1, 2, 3),
    homes=(Home(1, 1), Home(65536, 7, b"u" * 16, "höst:7000")),
    next_replica=65541,
)


@st.composite
def configurations(draw: st.DrawFn) -> Configuration:
    members = draw(st.lists(st.integers(1, 2**62), min_size=1, max_size=12, unique=True))
    voters_end = draw(st.integers(1, len(members)))
    outgoing_end = draw(st.integers(voters_end, len(members)))
    homes = tuple(
        Home(
            member,
            draw(st.integers(1, 2**16 - 1)),
            draw(st.sampled_from([b"", b"x" * 16])),
            draw(st.sampled_from(["", "a:1", "höst:7000"])),
        )
        for member in draw(st.lists(st.sampled_from(members), unique=True))
    )
    return Configuration(
        tuple(members[:voters_end]),
        learners=tuple(members[outgoing_end:]),
        outgoing=tuple(members[voters_end:outgoing_end]),
        homes=homes,
        next_replica=max(members) + draw(st.integers(1, 9)),
    )


@given(configurations())
def test_what_goes_in_comes_out(configuration: Configuration) -> None:
    data = encode_configuration(configuration)
    assert decode_configuration(data) == configuration
    assert decode_configuration(memoryview(data)) == configuration


def test_bytes_of_version_1() -> None:
    """Durable on disks: they can't change without a new version."""
    configuration = Configuration((1, 2), learners=(5,), homes=(Home(5, 3, b"u" * 16, "h:1"),), next_replica=6)
    assert encode_configuration(configuration).hex() == (
        "0100"  # version, 0
        "0200010000000100"  # voters, learners, outgoing, homes
        "0600000000000000"  # next replica
        "010000000000000002000000000000000500000000000000"
        "0500000000000000" + "0300" + "10" + "03" + "75" * 16 + "683a31"
    )


def test_the_next_replica_is_one_above_the_highest_where_it_is_not_given() -> None:
    configuration = Configuration((4, 2), learners=(9,))
    assert next_replica_of(configuration) == 10
    assert decode_configuration(encode_configuration(configuration)).next_replica == 10
    assert members_of(configuration) == {2, 4, 9}
    assert (node_of(FULL, 65536), node_of(FULL, 3)) == (7, 0)


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (Configuration(()), "no voters"),
        (Configuration((1, 1)), "twice"),
        (Configuration((1,), learners=(1,)), "twice"),
        (Configuration((1,), learners=(2,), outgoing=(2,)), "twice"),
        (Configuration((0,)), "positive"),
        (Configuration((2**63,)), "positive"),
        (Configuration((1, 2), next_replica=2), "not above"),
        (Configuration((1,), homes=(Home(2, 2),)), "not those of members"),
        (Configuration((1,), homes=(Home(1, 0),)), "lives nowhere"),
        (Configuration((1,), homes=(Home(1, 1, b"short"),)), "lives nowhere"),
        (Configuration((1,), homes=(Home(1, 1, b"", "a" * 256),)), "longer than"),
        (Configuration(tuple(range(1, MEMBERS_MAX + 2))), "more than"),
    ],
)
def test_configurations_that_can_not_be(bad: Configuration, problem: str) -> None:
    assert problem in problem_of(bad)
    with pytest.raises(ValueError, match=problem):
        encode_configuration(bad)


def test_every_cut_and_every_extra_byte_is_refused() -> None:
    data = encode_configuration(FULL)
    for end in range(len(data)):
        with pytest.raises(ValueError):
            decode_configuration(data[:end])
    with pytest.raises(ValueError, match="1 bytes too many"):
        decode_configuration(data + b"\x00")


@pytest.mark.parametrize("byte", [0, 1])
def test_another_version_is_refused(byte: int) -> None:
    data = bytearray(encode_configuration(FULL))
    data[byte] = 2
    with pytest.raises(ValueError):
        decode_configuration(bytes(data))


def test_noise_is_refused_or_can_be() -> None:
    draw = random.Random(1)
    good = encode_configuration(FULL)
    for _ in range(5000):
        data = bytearray(good)
        for _ in range(draw.randrange(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        try:
            found = decode_configuration(bytes(data))
        except ValueError:
            continue
        assert problem_of(found) == ""
        assert encode_configuration(found) == bytes(data)
