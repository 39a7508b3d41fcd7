"""A model handle's codecs: what travels, what a rank computes with, and what is refused before anything is sent; and
pulls of what is newer only."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import paramserver
from paramserver.wire import codecs
from paramserver.wire.codecs import Codec, Encoded, encode
from paramserver.wire.frames import BlockFrame, BlockStatus, PushKind
from paramserver.wire.layout import Layout
from paramserver.wire.spec import ModelSpec, TensorSpec, sgd
from tests.unit.worker.fake import FakeCluster
from tests.unit.worker.helpers import BLOCKS, SHAPES, applied_once, client_of, gradients, initial, model_of
from worker import errors, steps
from worker.steps import GroupStep

LOSSY = ("bf16", "fp16")


def uneven(scale: float = 1.0) -> dict[str, np.ndarray]:
    """Gradients that no short codec can say."""
    random = np.random.default_rng(5)
    return {name: (scale * random.standard_normal(shape)).astype(np.float32) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("name", LOSSY)
def test_gradients_travel_in_the_handles_codec_and_weights_in_theirs(name: str) -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client, codec=name)
        assert (model.codec, model.weights_codec) == (Codec[name.upper()], Codec.FP32)
        weights = model.push_pull(uneven()).result()
        sizes = [len(payload) for _, step, payload in cluster.payloads[-BLOCKS:]]
        assert sum(sizes) == 2 * 5001
        expected = initial()["a"] - 0.5 * codecs.decode(
            model.codec, bytes(encode(model.codec, uneven()["a"].ravel())), 2000
        ).reshape(40, 50)
        assert np.array_equal(weights["a"], expected)
        assert applied_once(cluster, 1)


@pytest.mark.parametrize("name", LOSSY)
def test_what_a_rank_computes_with_is_the_same_however_it_comes(name: str) -> None:
    """By push_pull, by pull, after a restart, from any replica: the codec's values of one version; the servers keep
    fp32."""
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client, weights_codec=name)
        codec = Codec[name.upper()]
        pushed = model.push_pull(uneven()).result()
        assert {hello.weights_codec for hello in cluster.hellos if hello.lease_epoch} == {codec}
        assert model.pull().digest() == pushed.digest()
        assert {request.codec for _, request in cluster.pulls} == {codec}
        assert model.pull(version=1).digest() == pushed.digest()
        kept = np.concatenate([weights for _, weights in sorted(next(iter(cluster.models.values())).weights.items())])
        assert pushed.flat.tobytes() == codecs.decode(codec, bytes(encode(codec, kept)), kept.size).tobytes()
        assert pushed.flat.tobytes() != kept.tobytes()
        cluster.without_weights = True
        later = model.push_pull(uneven()).result()
        cluster.without_weights = False
        assert model.pull().digest() == later.digest()
    with client_of(cluster) as again:
        assert model_of(again, weights_codec=name).pull().digest() == later.digest()


def test_a_server_that_does_not_know_the_codec_is_noticed() -> None:
    """It would answer in fp32: other bits than other ranks compute with."""
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client, weights_codec="bf16")
        cluster.old_codec = Codec.FP32
        for call in (model.pull, lambda: model.push_pull(gradients(0)).result()):
            with pytest.raises(errors.ProtocolError, match="FP32, where BF16 was asked for"):
                call()


@pytest.mark.parametrize("field", ["codec", "weights_codec", "log_codec"])
@pytest.mark.parametrize("value", ["int8", "", "BF16", 3, np.float16])
def test_a_codec_that_there_is_not(field: str, value: Any) -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client, pytest.raises(errors.InvalidArgument, match=f"{field} .*'fp32', 'bf16', 'fp16'"):
        model_of(client, **{field: value})
    assert not cluster.models


def test_the_logs_codec_is_part_of_the_model() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client, log_codec=paramserver.Codec.BF16)
        assert model.spec.log_codec is Codec.BF16
        with pytest.raises(errors.SpecMismatch):
            model_of(client, rank=None, log_codec="fp16")
        with pytest.raises(errors.SpecMismatch):
            model_of(client, rank=None)
        assert model_of(client, rank=None, log_codec="bfloat16").spec == model.spec
        assert client.model("demo").spec == model.spec


# --- beyond the range of a codec (RULES S10) ------------------------------------------------------------------------


@pytest.mark.parametrize(("codec", "largest", "wider"), [("fp16", 65_520.0, "bf16"), ("bf16", 3.4e38, "fp32")])
def test_the_way_out_is_a_codec_that_can_hold_it(codec: str, largest: float, wider: str) -> None:
    """For what is beyond bf16 it was bf16."""
    with client_of(FakeCluster()) as client:
        wrong = gradients(0)
        wrong["b"][17] = largest
        with pytest.raises(errors.NonFinite, match=f"the largest {codec}") as caught:
            model_of(client, codec=codec).push_pull(wrong)
        assert f"codec='{wider}'" in caught.value.hint


def test_what_the_codec_would_make_infinite_is_refused_before_anything_is_sent() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client, codec="fp16")
        cluster.frames.clear()
        wrong = gradients(0)
        wrong["b"][17] = -70_000.0
        with pytest.raises(errors.NonFinite, match=r"-70000\.0 in tensor 'b' at element 17, beyond 65504") as caught:
            model.push_pull(wrong)
        assert "scale the loss down" in caught.value.hint
        assert (caught.value.tensor, caught.value.step) == ("b", 0)
        assert not cluster.frames
        wrong["b"][17] = np.nan
        with pytest.raises(errors.NonFinite, match="nan in tensor 'b' at element 17") as caught:
            model.push_pull(wrong)
        assert "beyond" not in str(caught.value)
        wrong["b"][17] = 65_504.0
        model.push_pull(wrong).result()


def test_by_policy_it_skips_the_step_or_goes_on_as_infinity() -> None:
    for policy, kind in ((paramserver.NonFinite.SKIP, True), (paramserver.NonFinite.ALLOW, False)):
        cluster = FakeCluster()
        with client_of(cluster) as client:
            model = model_of(client, codec="fp16", non_finite=policy)
            wrong = gradients(0)
            wrong["c"][0] = 1e6
            weights = model.push_pull(wrong).result()
            assert np.isneginf(weights["c"][0]) != kind
            assert np.array_equal(weights["b"], initial()["b"]) == kind


# --- the bytes of a step --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", tuple(Codec))
def test_a_block_is_encoded_once_and_sent_again_as_it_was(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """RULES S12, also when the gradient's buffer was touched meanwhile; what is acknowledged is let go."""
    made: list[Codec] = []

    def counting(which: Codec, values: Any) -> memoryview:
        made.append(which)
        return encode(which, values)

    monkeypatch.setattr(steps, "encode", counting)
    layout = Layout(ModelSpec("m", (TensorSpec("w", (3000,)),), sgd(0.1), 1, block_bytes=4096))
    gradient = np.random.default_rng(1).standard_normal(3000, dtype=np.float32)
    step = GroupStep(
        step=0,
        first=0,
        count=3,
        layout=layout,
        kind=PushKind.GRADIENT,
        gradient=gradient,
        weights=None,
        codec=codec,
    )
    first = [step.next_frame() for _ in range(3)]
    step.rewind()
    again = [step.next_frame() for _ in range(3)]
    assert made == [codec] * 3
    for one, other in zip(first, again, strict=True):
        assert one is not None
        assert other is not None
        assert (one.codec, one.crc) == (other.codec, other.crc)
        assert one.payload is other.payload
    assert isinstance(codecs.received(codec, first[0].payload, 1024), Encoded) == (codec is not Codec.FP32)  # type: ignore[union-attr]


def test_bytes_that_are_acknowledged_are_let_go() -> None:
    layout = Layout(ModelSpec("m", (TensorSpec("w", (2048,)),), sgd(0.1), 1, block_bytes=4096))
    gradient = np.ones(2048, np.float32)
    step = GroupStep(
        step=0,
        first=0,
        count=2,
        layout=layout,
        kind=PushKind.GRADIENT,
        gradient=gradient,
        weights=None,
        codec=Codec.BF16,
    )
    held: list[weakref.ref[Any]] = []
    for _ in range(2):
        frame = step.next_frame()
        assert frame is not None
        assert isinstance(frame.payload, memoryview)
        held.append(weakref.ref(frame.payload))
        del frame
    step.take(BlockFrame(block=1, step=0, version=1, status=BlockStatus.APPLIED))
    assert [one() is not None for one in held] == [True, False]


# --- only what is newer ---------------------------------------------------------------------------------------------


def reader_of(client: Any) -> Any:
    return client.model("demo")


def test_a_reader_gets_nothing_until_there_is_something_newer() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        reader = reader_of(client)
        weights = reader.pull()
        assert weights.version == 0
        cluster.pulls.clear()
        untouched = weights.flat.tobytes()
        assert reader.pull(if_newer_than=weights.version, out=weights) is None
        assert weights.flat.tobytes() == untouched
        assert [request.if_newer_than for _, request in cluster.pulls] == [0, 0, 0]
        after = model.push_pull(gradients(0)).result()
        newer = reader.pull(if_newer_than=weights.version, out=weights)
        assert newer is weights
        assert (newer.version, newer.digest()) == (1, after.digest())
        assert reader.pull(if_newer_than=1) is None
        assert reader.pull(if_newer_than=0).digest() == after.digest()
        assert reader.pull(if_newer_than=7) is None


@pytest.mark.parametrize(
    "options", [{}, {"min_version": 0}, {"consistency": paramserver.LINEARIZABLE}], ids=["newest", "least", "linear"]
)
def test_where_some_blocks_are_newer_all_of_them_come(options: dict[str, Any]) -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client, ranks=2)
        reader = reader_of(client)
        fake = next(iter(cluster.models.values()))
        fake.before[3] = fake.weights[3]
        fake.weights[3], fake.versions[3] = fake.weights[3] + 1, 1
        if not options:
            # The others are waited for, as without it.
            with pytest.raises(errors.DeadlineExceeded):
                reader.pull(if_newer_than=0, timeout=0.2)
            for block in set(range(BLOCKS)) - {3}:
                fake.before[block] = fake.weights[block]
                fake.weights[block], fake.versions[block] = fake.weights[block] + 1, 1
        got = reader.pull(if_newer_than=0, **options)
        assert got is not None
        kept = np.concatenate([weights for _, weights in sorted(fake.weights.items())])
        assert got.flat.tobytes() == kept.tobytes()
        assert got.versions == tuple(fake.versions[block] for block in range(BLOCKS))
        assert model.rank == 0


def test_a_rank_knows_by_itself() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        model.push_pull(gradients(0)).result()
        cluster.pulls.clear()
        assert model.pull(if_newer_than=1) is None
        assert not cluster.pulls
        assert model.pull(if_newer_than=0).version == 1


def test_what_can_not_be_asked() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        with pytest.raises(errors.InvalidArgument, match="version and if_newer_than"):
            model.pull(version=0, if_newer_than=0)
        for wrong in (-1, 2**62):
            with pytest.raises(errors.InvalidArgument, match="if_newer_than"):
                model.pull(if_newer_than=wrong)


def test_a_server_that_keeps_what_is_newer_to_itself_is_noticed() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        model.push_pull(gradients(0)).result()
        fake = next(iter(cluster.models.values()))
        fake.versions = dict.fromkeys(fake.versions, 1)

        def lying(address: str, request: Any) -> Any:
            frames = FakeCluster.pull(cluster, address, request)
            return [replace(frame, status=BlockStatus.NOT_NEWER, payload=b"") for frame in frames]

        cluster.pull = lying  # type: ignore[method-assign]
        reader = reader_of(client)
        for how in ({"if_newer_than": 0}, {"min_version": 0}):
            with pytest.raises(errors.ProtocolError, match="sent nothing of block"):
                reader.pull(**how)
