"""Gradients, sums in the log and weights in codecs: what is rounded where, once, and alike on every replica (S12)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from paramserver.shard import forms as forms_module
from paramserver.shard.commands import HEADER_BYTES, InitialBlock, UpdateBlock, decode, encode
from paramserver.shard.errors import CommandError
from paramserver.shard.forms import Form, Forms
from paramserver.shard.machine import ShardMachine
from paramserver.shard.reads import BlockRead, Value
from paramserver.shard.results import NotTaken, Updated, Why
from paramserver.wire import codecs
from paramserver.wire.checksum import crc32c
from paramserver.wire.codecs import Codec, Encoded
from paramserver.wire.errors import Reason, Refusal
from paramserver.wire.frames import PushFrame, PushKind
from paramserver.wire.layout import Flat
from paramserver.wire.spec import ModelSpec, NonFinite, Reduction, adam
from tests.unit.shard.kit import (
    ELEMENTS,
    MODEL,
    PLACEMENT,
    Log,
    Node,
    Rank,
    as_entry,
    gradient,
    initial_values,
    machine_with,
    model_spec,
    opening_commands,
    same_bits,
    started,
    update_command,
)

LOSSY = (Codec.BF16, Codec.FP16)


def rounded(codec: Codec, values: Flat) -> Flat:
    """There and back."""
    return codecs.decode(codec, bytes(codecs.encode(codec, values)), values.size).copy()


def encoded_frame(rank: Rank, codec: Codec, step: int, block: int, values: Flat | None = None) -> PushFrame:
    if values is None:
        values = gradient(rank.spec, step=step, rank=rank.rank, block=block)
    payload = memoryview(bytes(codecs.encode(codec, values)))
    return rank.frame(step, block, codec=codec, payload=payload, crc=crc32c(payload))


def expected_step(spec: ModelSpec, weights: Flat, step: int, block: int, pushed: tuple[Codec, ...]) -> Flat:
    """Plain SGD of rate 0.5, by the words of the rules: what was sent is added in fp32, the sum is rounded once."""
    parts = [rounded(codec, gradient(spec, step=step, rank=rank, block=block)) for rank, codec in enumerate(pushed)]
    total = parts[0]
    for part in parts[1:]:  # one after the other is the tree of up to three ranks
        total = total + part
    mean = rounded(spec.log_codec, total) / np.float32(spec.ranks)
    return weights - np.float32(0.5) * mean


@pytest.mark.parametrize("log_codec", tuple(Codec))
@pytest.mark.parametrize("pushed", [(Codec.BF16, Codec.BF16), (Codec.FP16, Codec.FP32), (Codec.FP32, Codec.BF16)])
def test_each_rank_in_its_codec_sums_in_fp32_and_the_log_in_the_models(
    log_codec: Codec, pushed: tuple[Codec, ...]
) -> None:
    node, spec = started(log_codec=log_codec)
    follower = Node(node.log, 2)
    ranks = [Rank(node, spec, number) for number in range(2)]
    for step in range(2):
        for number in (1, 0):
            for block in range(3):
                ranks[number].send(encoded_frame(ranks[number], pushed[number], step, block))
        node.settle()
    follower.apply()
    for block in range(3):
        weights = initial_values(spec, block)
        for step in range(2):
            weights = expected_step(spec, weights, step, block, pushed)
        assert same_bits(node.weights(block), weights)
        assert same_bits(follower.weights(block), weights)


@pytest.mark.parametrize("codec", LOSSY)
def test_a_sum_takes_half_the_log(codec: Codec) -> None:
    node, spec = started(ranks=1, log_codec=codec)
    Rank(node, spec).push(0, 0)
    node.settle()
    payload = node.log.committed[-1].payload
    assert len(payload) == HEADER_BYTES + 2 * ELEMENTS
    command = decode(payload)
    assert isinstance(command, UpdateBlock)
    assert command.codec is codec
    assert isinstance(command.values, Encoded)
    assert np.shares_memory(command.values.shorts, np.frombuffer(payload, np.uint8))


@pytest.mark.parametrize("codec", LOSSY)
def test_optimizers_apply_what_was_logged_however_it_is_cut_into_pieces(codec: Codec) -> None:
    """The leader applies the decoded sum too, never the one it still has in fp32."""
    spec = model_spec(optimizer=adam(0.01, weight_decay=0.1), log_codec=codec)
    plain = model_spec(optimizer=adam(0.01, weight_decay=0.1))
    lossy, reference = machine_with(opening_commands(spec)), machine_with(opening_commands(plain))
    for step in range(3):
        command = update_command(spec, 0, step, codec=codec)
        assert isinstance(command.values, np.ndarray)
        result = lossy.apply(as_entry(command))
        expected = reference.apply(as_entry(update_command(plain, 0, step, values=rounded(codec, command.values))))
        assert isinstance(result, Updated)
        assert isinstance(expected, Updated)
        assert same_bits(result.weights, expected.weights)
        assert result.digest == expected.digest


@pytest.mark.parametrize("log_codec", tuple(Codec))
def test_a_command_in_another_codec_than_the_models_is_not_applied(log_codec: Codec) -> None:
    machine = machine_with(opening_commands(model_spec(log_codec=log_codec)))
    for codec in set(Codec) - {log_codec}:
        for kind in (PushKind.GRADIENT, PushKind.SKIP):
            result = machine.apply(as_entry(update_command(model_spec(), 0, 0, codec=codec, kind=kind)))
            assert isinstance(result, NotTaken)
            assert result.why is Why.MALFORMED
    assert machine.shards[MODEL].published[0].version == 0


@pytest.mark.parametrize("codec", LOSSY)
def test_commands_come_back_as_they_were(codec: Codec) -> None:
    spec = model_spec(log_codec=codec)
    command = update_command(spec, 2, 5, codec=codec)
    again = decode(encode(command))
    assert isinstance(again, UpdateBlock)
    assert isinstance(again.values, Encoded)
    assert again.codec is codec
    assert command.values is not None
    assert same_bits(codecs.floats(again.values), rounded(codec, codecs.floats(command.values)))
    assert encode(again) == encode(command)


def test_initial_values_are_fp32_and_a_length_that_does_not_fit_is_refused() -> None:
    initial = bytearray(
        encode(InitialBlock(model=1, generation=1, epoch=1, block=0, elements=4, values=np.ones(4, np.float32)))
    )
    initial[3] = Codec.BF16
    with pytest.raises(CommandError, match="16 bytes"):
        decode(bytes(initial))
    with pytest.raises(CommandError, match="FP32 always"):
        decode(bytes(initial[: HEADER_BYTES + 8]))
    update = bytes(encode(update_command(model_spec(), 0, 0, codec=Codec.FP16)))
    for cut in (update[:-1], update + b"x", update[:HEADER_BYTES]):
        with pytest.raises(CommandError, match="elements of codec 3"):
            decode(cut)


def test_a_snapshot_keeps_the_codec_of_the_log() -> None:
    spec = model_spec(log_codec=Codec.BF16)
    one, other = machine_with(opening_commands(spec)), ShardMachine(1)
    other.restore(iter([memoryview(bytes(chunk)) for chunk in one.snapshot()]))
    assert other.shards[MODEL].info.create.spec.log_codec is Codec.BF16
    command = as_entry(update_command(spec, 0, 0, codec=Codec.BF16))
    first, second = one.apply(command), other.apply(command)
    assert isinstance(first, Updated)
    assert isinstance(second, Updated)
    assert first.digest == second.digest


# --- sums that the log's codec cannot say ---------------------------------------------------------------------------


def refused(node: Node, spec: ModelSpec, number: float) -> Refusal:
    ranks = [Rank(node, spec, rank) for rank in range(spec.ranks)]
    values = np.zeros(ELEMENTS, np.float32)
    values[7] = number
    for rank in ranks:
        rank.push(0, 0, values=values)
    refusals = [rank.replies.refusal for rank in ranks]
    assert all(refusal is not None for refusal in refusals)
    assert node.versions() == [0, 0, 0]
    assert refusals[0] is not None
    return refusals[0]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("policy", [NonFinite.REJECT, NonFinite.SKIP])
def test_a_sum_beyond_fp16_is_refused_to_all_with_the_way_out(ranks: int, policy: NonFinite) -> None:
    """A single rank's, too: what it pushed was finite, what would be logged is not."""
    node, spec = started(ranks=ranks, log_codec=Codec.FP16, non_finite=policy)
    refusal = refused(node, spec, 70_000.0)
    assert (refusal.reason, refusal.code) == (Reason.NON_FINITE, "INVALID_ARGUMENT")
    for part in (
        "up to 65504 (fp16)",
        f"{ranks * 70_000.0}",
        "the sum over all ranks",
        "'weights' element 7",
        "step 0",
    ):
        assert part in refusal.message
    assert "log_codec" in refusal.hint
    assert "bf16" in refusal.hint


def test_a_sum_beyond_fp32_is_not_blamed_on_the_codec() -> None:
    node, spec = started(log_codec=Codec.BF16)
    refusal = refused(node, spec, 3e38)
    assert "finite numbers, received inf" in refusal.message


def test_a_model_that_allows_it_gets_infinity_on_every_replica() -> None:
    node, spec = started(ranks=1, log_codec=Codec.FP16, non_finite=NonFinite.ALLOW)
    Rank(node, spec).push(0, 0, values=np.full(ELEMENTS, -70_000.0, np.float32))
    node.settle()
    follower = Node(node.log, 2)
    follower.apply()
    assert np.isposinf(node.weights(0)).all()
    assert same_bits(node.weights(0), follower.weights(0))


def test_a_sum_that_is_not_averaged_fits_or_not_as_it_is() -> None:
    """The sum is logged, and divided in apply."""
    node, spec = started(log_codec=Codec.FP16, reduction=Reduction.MEAN)
    assert refused(node, spec, 40_000.0).reason is Reason.NON_FINITE


# --- weights on their way back --------------------------------------------------------------------------------------


class Encoder:
    """Counts what is encoded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[Codec] = []
        monkeypatch.setattr(forms_module, "encode", self)

    def __call__(self, codec: Codec, values: Flat) -> memoryview:
        self.made.append(codec)
        return codecs.encode(codec, values)


@pytest.mark.parametrize("codec", LOSSY)
def test_weights_come_back_in_the_ranks_codec_encoded_once_a_version(
    codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Encoder(monkeypatch)
    node, spec = started(ranks=3)
    ranks = [Rank(node, spec, 0, weights_codec=codec), Rank(node, spec, 1, weights_codec=codec), Rank(node, spec, 2)]
    node.lane.at_once = False
    for rank in ranks:
        rank.push(0, 0)
    node.lane.run_all()
    node.log.commit()
    node.apply()
    assert not node.lane.waiting, "apply encoded it, in cache"
    assert encoder.made == [codec]
    frames = [rank.replies.frames[0] for rank in ranks]
    assert frames[0] is frames[1], "one frame, so that it is made into bytes once"
    assert [frame.codec for frame in frames] == [codec, codec, Codec.FP32]
    for frame in frames:
        assert bytes(frame.payload) == bytes(codecs.encode(frame.codec, node.weights(0)))
        assert frame.crc == crc32c(frame.payload)


def test_the_servers_keep_fp32() -> None:
    node, spec = started(ranks=1)
    plain, reference = started(ranks=1)
    rank, other = Rank(node, spec, weights_codec=Codec.BF16), Rank(plain, reference)
    for step in range(2):
        rank.push(step, 0, 1, 2)
        other.push(step, 0, 1, 2)
        node.settle()
        plain.settle()
    assert same_bits(node.weights(1), plain.weights(1))


def test_only_the_codecs_of_open_streams_are_made_in_apply(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(monkeypatch)
    node, spec = started(ranks=1)
    rank = Rank(node, spec, weights_codec=Codec.FP16)
    rank.push(0, 0)
    node.settle()
    assert encoder.made == [Codec.FP16]
    rank.stream.close()
    again = Rank(node, spec)
    again.push(0, 1)
    node.settle()
    silent = Rank(node, spec, weights_codec=Codec.BF16, want_weights=False)
    silent.push(0, 2)
    node.settle()
    assert encoder.made == [Codec.FP16]
    assert silent.replies.frames[0].payload == b""
    assert silent.replies.frames[0].codec is Codec.FP32


@pytest.mark.parametrize("ended", [False, True])
def test_an_answer_to_a_step_behind_is_encoded_on_a_lane(ended: bool) -> None:
    node, spec = started(ranks=1)
    Rank(node, spec).push(0, 0)
    node.settle()
    late = Rank(node, spec, weights_codec=Codec.BF16)
    node.lane.at_once = False
    late.push(0, 0)
    assert late.replies.frames == []
    if ended:
        late.stream.close()
    node.lane.run_all()
    if ended:
        assert late.replies.frames == []
        return
    assert late.replies.seen == [(0, 1, "DUPLICATE")]
    assert bytes(late.replies.frames[0].payload) == bytes(codecs.encode(Codec.BF16, node.weights(0)))
    late.push(0, 0)
    assert not node.lane.waiting, "it is there already"
    assert len(late.replies.frames) == 2


def test_a_skipped_step_keeps_what_was_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(monkeypatch)
    node, spec = started(ranks=1)
    rank = Rank(node, spec, weights_codec=Codec.BF16)
    rank.push(0, 0)
    node.settle()
    rank.push(0, 1, 2)
    node.settle()
    rank.push(1, 0, kind=PushKind.SKIP)
    node.settle()
    assert len(encoder.made) == 3
    frames = [frame for frame in rank.replies.frames if frame.block == 0]
    assert [frame.version for frame in frames] == [1, 2]
    assert bytes(frames[0].payload) == bytes(frames[1].payload)


def read(node: Node, version: int, **more: Any) -> Value:
    want = BlockRead(model=MODEL, generation=1, placement_epoch=PLACEMENT, block=0, version=version)
    found = node.leader.read(want, lambda: None)
    assert isinstance(found, Value)
    return found


def test_every_replica_gives_the_same_bits_of_a_version_and_encodes_the_newest_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node, spec = started(ranks=1)
    for step in range(2):
        Rank(node, spec).push(step, 0, 1, 2)
        node.settle()
    follower = Node(node.log, 2)
    follower.apply()
    encoder = Encoder(monkeypatch)
    for version, made in ((2, 2), (1, 6)):
        got: list[Form] = []
        for one in (node, follower, node, follower):
            one.leader.encoded(read(one, version), Codec.BF16, got.append)
        assert len({bytes(form.payload) for form in got}) == 1
        assert len(got) == 4
        assert len(encoder.made) == made, "the version before is on its way out, and not kept"
        weights = np.frombuffer(read(node, version).payload, np.float32)
        assert bytes(got[0].payload) == bytes(codecs.encode(Codec.BF16, weights))


def test_what_was_encoded_goes_with_its_version() -> None:
    node, spec = started(ranks=1)
    rank = Rank(node, spec, weights_codec=Codec.BF16)
    rank.push(0, 0, 1, 2)
    node.settle()
    shard = node.machine.shards[MODEL]
    assert shard.published[0].forms is not None
    assert shard.published[0].forms.ready(Codec.BF16) is not None
    rank.push(1, 0, 1, 2)
    node.settle()
    before = shard.published[0].forms_at(1)
    assert before is not None
    assert before.ready(Codec.BF16) is None
    assert before.ready(Codec.FP32) is not None
    assert shard.published[0].forms_at(0) is None


def test_forms_are_made_once() -> None:
    weights = np.arange(5, dtype=np.float32)
    one = Forms(weights, crc32c(weights.data.cast("B")))
    assert one.ready(Codec.BF16) is None
    made = one.make(Codec.BF16)
    assert one.make(Codec.BF16) is one.ready(Codec.BF16) is made
    assert np.shares_memory(np.frombuffer(one.make(Codec.FP32).payload, np.uint8), weights)


def test_a_restarted_leader_answers_in_the_codec_of_new_streams() -> None:
    log = Log()
    spec = model_spec(ranks=1, log_codec=Codec.BF16)
    log.add(*opening_commands(spec))
    first = Node(log, 1)
    first.lead()
    Rank(first, spec, weights_codec=Codec.BF16).push(0, 0, 1, 2)
    first.settle()
    second = Node(log, 2)
    second.apply()
    second.lead(2)
    rank = Rank(second, spec, weights_codec=Codec.BF16)
    rank.push(0, 0)
    assert rank.replies.seen == [(0, 1, "DUPLICATE")]
    assert rank.replies.frames[0].codec is Codec.BF16
    assert bytes(rank.replies.frames[0].payload) == bytes(codecs.encode(Codec.BF16, first.weights(0)))
