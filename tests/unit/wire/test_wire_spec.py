"""Specs: what they say, and that they survive the way over the wire."""

from __future__ import annotations

from dataclasses import replace

import pytest

from paramserver.wire.protos import (
    View,
    spec_from_proto,
    spec_to_proto,
    valid_spec_from_proto,
    view_from_proto,
    view_to_proto,
)
from paramserver.wire.spec import (
    BLOCK_BYTES_DEFAULT,
    BLOCK_BYTES_MAX,
    PARAMETERS_MAX,
    Codec,
    ModelSpec,
    NonFinite,
    OptimizerSpec,
    Reduction,
    TensorSpec,
    adam,
    momentum,
    sgd,
    usual_block_bytes,
)


def spec(optimizer: OptimizerSpec | None = None) -> ModelSpec:
    tensors = (TensorSpec("layer1.weight", (3, 4)), TensorSpec("scalar", ()))
    return ModelSpec("my model", tensors, optimizer or sgd(0.1), 2)


@pytest.mark.parametrize(
    "optimizer",
    [sgd(0.1), sgd(0.1, weight_decay=0.3), momentum(0.1, 0.7, nesterov=True), adam(), adam(beta2=0.95, epsilon=1e-6)],
    ids=str,
)
def test_round_trip(optimizer: OptimizerSpec) -> None:
    original = ModelSpec("m", spec().tensors, optimizer, 64, Reduction.SUM, NonFinite.ALLOW, block_bytes=8192)
    assert original.validate() == []
    assert valid_spec_from_proto(spec_to_proto(original)) == original


def test_a_spec_without_a_codec_of_its_log_is_what_it_always_was() -> None:
    """Models from before there was a choice keep their bytes, and mean fp32."""
    message = spec_to_proto(spec())
    assert message.log_codec == 0
    assert spec_from_proto(message).log_codec is Codec.FP32
    message.log_codec = 1
    assert spec_from_proto(message) == spec()
    assert message.SerializeToString() != spec_to_proto(spec()).SerializeToString()
    assert spec_to_proto(spec_from_proto(message)).SerializeToString() == spec_to_proto(spec()).SerializeToString()


@pytest.mark.parametrize("codec", [Codec.BF16, Codec.FP16])
def test_the_codec_of_the_log_is_part_of_the_model(codec: Codec) -> None:
    lossy = replace(spec(), log_codec=codec)
    assert lossy.validate() == []
    assert lossy != spec()
    assert valid_spec_from_proto(spec_to_proto(lossy)) == lossy


def test_numbers_are_rounded_to_float32_at_once() -> None:
    assert sgd(0.1).learning_rate != 0.1
    assert sgd(0.1).learning_rate == pytest.approx(0.1, rel=1e-7)
    assert sgd(1e300).learning_rate == float("inf")


def test_numbers_are_shown_as_they_were_written() -> None:
    shown = "Adam(learning_rate=0.004, beta1=0.9, beta2=0.999, epsilon=1e-08, weight_decay=0)"
    assert str(adam(0.004)) == shown
    assert str(momentum(1 / 3)) == "Momentum(learning_rate=0.33333334, momentum=0.9, nesterov=False, weight_decay=0)"


def test_what_is_left_out_has_a_default() -> None:
    message = spec_to_proto(spec())
    for field in ("reduction", "non_finite", "block_bytes"):
        message.ClearField(field)
    found = spec_from_proto(message)
    assert (found.reduction, found.non_finite, found.block_bytes) == (Reduction.MEAN, NonFinite.REJECT, 1 << 20)


def test_all_problems_are_reported_at_once() -> None:
    wrong = ModelSpec("", (TensorSpec("a", (0,)), TensorSpec("a", (1,))), sgd(-1.0), 0, block_bytes=5)
    fields = [problem.field for problem in wrong.validate()]
    assert fields == [
        "name",
        "optimizer.learning_rate",
        "ranks",
        "block_bytes",
        "tensors[0].shape",
        "tensors[1].name",
    ]


def test_views_round_trip() -> None:
    view = View(3, 9, (1, 0, 7))
    assert view_from_proto(view_to_proto(view)) == view


def test_parameters_are_counted() -> None:
    assert spec().parameters == 13


def test_large_models_have_large_blocks() -> None:
    mib = 1 << 18
    assert [usual_block_bytes(n) for n in (1, mib, 64 * mib - 1)] == [BLOCK_BYTES_DEFAULT] * 3
    assert [usual_block_bytes(n) for n in (64 * mib, PARAMETERS_MAX)] == [BLOCK_BYTES_MAX] * 2
