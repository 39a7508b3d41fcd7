"""FAULTS, bad input 3, 5, 7, 9, 12 and 14, at a group's leader: the stream ends with words, training goes on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from consensus.runtime.interface import ReadIndex, Refused
from paramserver.wire.checksum import crc32c
from paramserver.wire.codecs import Codec, encode
from paramserver.wire.errors import Reason, Refusal
from paramserver.wire.frames import PushFrame, PushKind
from paramserver.wire.spec import NonFinite
from tests.unit.shard.kit import PLACEMENT, Node, Rank, expected_weights, hello, same_bits, started


def goes_on(node: Node, spec: Any) -> None:
    """Nothing that was acknowledged changed, and the same leader serves the step."""
    for rank in range(spec.ranks):
        Rank(node, spec, rank).push(0, 0, 1, 2)
    node.settle()
    for block in range(3):
        assert same_bits(node.weights(block), expected_weights(spec, block, 1))
    assert node.alarms == []


def refused(node: Node, spec: Any, **frame: Any) -> Refusal:
    rank = Rank(node, spec)
    rank.send(rank.frame(frame.pop("step", 0), frame.pop("block", 0), **frame))
    assert rank.replies.refusal is not None
    assert not rank.held
    goes_on(node, spec)
    return rank.replies.refusal


@pytest.mark.parametrize("codec", [Codec.BF16, Codec.FP16])
@pytest.mark.parametrize("size", [0, 1, 2047, 2049, 4096])
def test_an_encoded_payload_of_another_size_is_refused_with_both_numbers(codec: Codec, size: int) -> None:
    """Also one that fits another codec: of BF16, 4096 bytes would be twice the block."""
    refusal = refused(*started(), codec=codec, payload=bytes(size))
    assert (refusal.code, refusal.field) == ("INVALID_ARGUMENT", "payload")
    for part in ("2048 bytes", f"{size} bytes", codec.name):
        assert part in refusal.message


@pytest.mark.parametrize("codec", [Codec.BF16, Codec.FP16])
@pytest.mark.parametrize("log_codec", tuple(Codec))
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_in_every_codec(codec: Codec, log_codec: Codec, bad: float) -> None:
    node, spec = started(log_codec=log_codec)
    values = np.zeros(1024, np.float32)
    values[7] = bad
    payload = bytes(encode(codec, values))
    ranks = [Rank(node, spec, rank) for rank in range(2)]
    ranks[0].send(ranks[0].frame(0, 0, codec=codec, payload=payload, crc=crc32c(payload)))
    refusal = ranks[0].replies.refusal
    assert refusal is not None
    assert (refusal.reason, refusal.field, refusal.rank) == (Reason.NON_FINITE, "weights", 0)
    for part in (str(bad), "rank 0", "'weights' element 7", "step 0"):
        assert part in refusal.message
    assert node.leader.counters["rejected_model_7_rank_0"] == 1
    again = Rank(node, spec)
    for rank in (again, ranks[1]):
        rank.push(0, 0)
    node.settle()
    assert node.versions() == [1, 0, 0]


def test_a_damaged_payload_in_a_codec() -> None:
    refusal = refused(*started(), codec=Codec.BF16, payload=bytes(2048), crc=123)
    assert (refusal.reason, refusal.retryable) == (Reason.CHECKSUM, True)


@pytest.mark.parametrize("size", [0, 1, 4095, 4097, 8192])
def test_a_payload_of_another_size_is_refused_with_both_numbers(size: int) -> None:
    refusal = refused(*started(), payload=bytes(size))
    assert (refusal.code, refusal.field) == ("INVALID_ARGUMENT", "payload")
    assert "4096 bytes" in refusal.message
    assert f"{size} bytes" in refusal.message


def test_the_shorter_last_block_has_its_own_size() -> None:
    refusal = refused(*started(), block=2, payload=bytes(4096))
    assert "3696 bytes" in refusal.message


def test_a_damaged_payload() -> None:
    refusal = refused(*started(), crc=123)
    assert (refusal.reason, refusal.retryable) == (Reason.CHECKSUM, True)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("policy", [NonFinite.REJECT, NonFinite.SKIP])
def test_a_gradient_that_is_not_finite_is_refused_naming_rank_tensor_and_step(bad: float, policy: NonFinite) -> None:
    node, spec = started(non_finite=policy)
    refusal = refused(node, spec, block=0, values=np.where(np.arange(1024) == 7, bad, 0).astype(np.float32))
    assert (refusal.reason, refusal.field, refusal.rank) == (Reason.NON_FINITE, "weights", 0)
    for part in ("rank 0", "'weights' element 7", "step 0"):
        assert part in refusal.message
    assert node.leader.counters["rejected_model_7_rank_0"] == 1


def test_a_sum_that_overflows_is_refused_to_all() -> None:
    node, spec = started()
    ranks = [Rank(node, spec, rank) for rank in (0, 1)]
    for rank in ranks:
        rank.push(0, 0, values=np.full(1024, 3e38, np.float32))
    for rank in ranks:
        assert rank.replies.refusal is not None
        assert rank.replies.refusal.reason is Reason.NON_FINITE
        assert "the sum" in rank.replies.refusal.message
    goes_on(node, spec)


def test_a_model_may_allow_what_is_not_finite() -> None:
    node, spec = started(ranks=1, non_finite=NonFinite.ALLOW)
    rank = Rank(node, spec)
    rank.push(0, 0, values=np.full(1024, np.nan, np.float32))
    node.settle()
    assert np.isnan(node.weights(0)).all()


@pytest.mark.parametrize("block", [3, 99, 2**32 - 1])
def test_a_block_that_is_not_here(block: int) -> None:
    node, spec = started()
    rank = Rank(node, spec)
    rank.send(PushFrame(block=block, step=0, payload=bytes(4096)))
    assert rank.replies.refusal is not None
    assert (rank.replies.refusal.code, rank.replies.refusal.expected) == ("NOT_FOUND", "0 to 2 in this group")
    goes_on(node, spec)


def test_a_step_behind_is_a_duplicate_with_the_current_version() -> None:
    node, spec = started(ranks=1)
    for step in range(3):
        Rank(node, spec).push(step, 0, 1, 2)
        node.settle()
    late = Rank(node, spec)
    late.push(0, 0)
    assert late.replies.refusal is None
    assert late.replies.seen == [(0, 3, "DUPLICATE")]
    assert node.versions() == [3, 3, 3]


@pytest.mark.parametrize("step", [2, 100, 2**62 - 1])
def test_a_step_far_ahead(step: int) -> None:
    node, spec = started()
    rank = Rank(node, spec)
    rank.push(step, 0, values=np.zeros(1024, np.float32))
    refusal = rank.replies.refusal
    assert refusal is not None
    assert (refusal.reason, refusal.code, refusal.version) == (Reason.FAR_AHEAD, "FAILED_PRECONDITION", 0)
    goes_on(node, spec)


def test_another_hello_in_the_middle_and_initial_values_on_a_push_stream() -> None:
    for frame in (PushFrame(hello=hello()), PushFrame(kind=PushKind.INITIAL, payload=bytes(4096))):
        node, spec = started()
        rank = Rank(node, spec)
        rank.send(frame)
        assert rank.replies.refusal is not None
        assert rank.replies.refusal.code == "INVALID_ARGUMENT"
        goes_on(node, spec)


def test_a_skip_or_an_empty_one_with_a_payload() -> None:
    for kind in (PushKind.SKIP, PushKind.EMPTY):
        refusal = refused(*started(), kind=kind, payload=b"1234")
        assert refusal.field == "payload"


@pytest.mark.parametrize("proposed", [False, True])
def test_a_block_again_on_its_own_stream(proposed: bool) -> None:
    """It was answered once, and a client that had sent its last frame waited for the second answer for ever."""
    node, spec = started()
    rank = Rank(node, spec)
    rank.push(0, 0)
    if proposed:
        Rank(node, spec, 1).push(0, 0)
    rank.push(0, 0)
    refusal = rank.replies.refusal
    assert refusal is not None
    assert (refusal.code, refusal.field) == ("INVALID_ARGUMENT", "block")
    assert "block 0 again" in refusal.message
    goes_on(node, spec)


def test_blocks_out_of_order() -> None:
    node, spec = started()
    rank = Rank(node, spec)
    rank.push(0, 1)
    assert rank.replies.refusal is not None
    assert rank.replies.refusal.reason is Reason.OUT_OF_ORDER
    goes_on(node, spec)


@pytest.mark.parametrize(
    ("fields", "reason", "code", "field"),
    [
        ({"model": 8}, Reason.NOT_FOUND, "NOT_FOUND", "hello.model"),
        ({"generation": 2}, Reason.NOT_FOUND, "NOT_FOUND", "hello.model"),
        ({"group": 2}, Reason.INVALID, "INVALID_ARGUMENT", "hello.group"),
        ({"rank": 2}, Reason.INVALID, "INVALID_ARGUMENT", "hello.rank"),
        ({"placement_epoch": PLACEMENT - 1}, Reason.STALE_EPOCH, "FAILED_PRECONDITION", "placement_epoch"),
        ({"placement_epoch": PLACEMENT + 1}, Reason.STALE_EPOCH, "FAILED_PRECONDITION", "placement_epoch"),
        ({"lease_epoch": 2}, Reason.STALE_LEASE, "FAILED_PRECONDITION", "hello.lease_epoch"),
        ({"lease_epoch": 0}, Reason.STALE_LEASE, "FAILED_PRECONDITION", "hello.lease_epoch"),
    ],
)
def test_a_hello_that_does_not_fit(fields: dict[str, Any], reason: Reason, code: str, field: str) -> None:
    node, spec = started()
    with pytest.raises(Refusal) as caught:
        Rank(node, spec, **fields)
    refusal = caught.value
    assert (refusal.reason, refusal.code, refusal.field) == (reason, code, field)
    if reason is Reason.STALE_EPOCH:
        assert refusal.epoch == PLACEMENT
    goes_on(node, spec)


@pytest.mark.parametrize("confirmed", [True, False])
@pytest.mark.parametrize("bad", ["far ahead", "out of order"])
def test_only_a_leader_that_still_leads_blames_a_rank(bad: str, confirmed: bool) -> None:
    """One that was deposed and does not know it is behind, and a rank that went on with its successor looks wrong to
    it: it was refused for good (seed 700323)."""
    node, spec = started()
    node.asked = []
    rank = Rank(node, spec)
    if bad == "far ahead":
        rank.push(4, 0)
    else:
        rank.push(0, 2)
    assert len(node.asked) == 1
    node.leader.offered(rank.stream)
    assert len(node.asked) == 1
    assert rank.replies.refusal is None
    node.asked.pop()(ReadIndex(0, 0) if confirmed else Refused(1, 1))
    refusal = rank.replies.refusal
    assert refusal is not None
    wrong = Reason.FAR_AHEAD if bad == "far ahead" else Reason.OUT_OF_ORDER
    assert refusal.reason is (wrong if confirmed else Reason.NOT_LEADER)
    assert refusal.leader_address == ""
    node.asked = None
    goes_on(node, spec)
