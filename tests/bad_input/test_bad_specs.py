"""FAULTS, bad input 4, 8 and 16: specs are refused before anything is allocated, naming field and expectation."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

from paramserver.v1 import paramserver_pb2 as pb
from paramserver.wire.errors import Refusal
from paramserver.wire.protos import spec_to_proto, valid_spec_from_proto
from paramserver.wire.spec import ModelSpec, TensorSpec, adam, momentum, sgd


def message(**change: Any) -> Any:
    spec = ModelSpec("m", (TensorSpec("w", (2, 2)),), sgd(0.1), 1)
    made = spec_to_proto(spec)
    for field, value in change.items():
        if field == "tensors":
            del made.tensors[:]
            made.tensors.extend(value)
        elif field == "optimizer":
            made.optimizer.CopyFrom(value)
        else:
            setattr(made, field, value)
    return made


def refused(made: Any) -> Refusal:
    tracemalloc.start()
    try:
        with pytest.raises(Refusal) as caught:
            valid_spec_from_proto(made)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert caught.value.code == "INVALID_ARGUMENT"
    assert caught.value.field
    assert caught.value.expected
    return caught.value


@pytest.mark.parametrize(
    "shape",
    [(-1,), (0,), (3, 0, 2), (2**62,), (2**31, 2**31, 2**31), (2**63 - 1, 2**63 - 1), (1,) * 33, (2**40, 1)],
    ids=str,
)
def test_shapes(shape: tuple[int, ...]) -> None:
    refusal = refused(message(tensors=[pb.TensorSpec(name="w", shape=shape, dtype=1)]))
    assert refusal.field == "tensors[0].shape"


def test_tensors_that_are_too_large_together() -> None:
    shape = (2**35,)
    tensors = [pb.TensorSpec(name=f"w{number}", shape=shape, dtype=1) for number in range(3)]
    assert refused(message(tensors=tensors)).field == "tensors"


def test_too_many_blocks() -> None:
    tensors = [pb.TensorSpec(name="w", shape=(2**32,), dtype=1)]
    assert refused(message(tensors=tensors, block_bytes=4096)).field == "block_bytes"


@pytest.mark.parametrize("dtype", [0, 2, 99, -1])
def test_dtypes(dtype: int) -> None:
    assert refused(message(tensors=[pb.TensorSpec(name="w", shape=(1,), dtype=dtype)])).field == "tensors[0].dtype"


@pytest.mark.parametrize(
    "name",
    ["", "a" * 201, "a\nb", "\x1b[2J", "../etc/passwd", "a/b", "a\\b", ".hidden", "~root", " a", "a ", "\u202eevil"],
    ids=ascii,
)
def test_names(name: str) -> None:
    for made, field in (
        (message(name=name), "name"),
        (message(tensors=[pb.TensorSpec(name=name, shape=(1,), dtype=1)]), "tensors[0].name"),
    ):
        refusal = refused(made)
        assert refusal.field == field
        assert refusal.message.isprintable()
        assert len(refusal.message) <= 400


def test_none_or_too_many_tensors_or_the_same_twice() -> None:
    assert refused(message(tensors=[])).field == "tensors"
    one = pb.TensorSpec(name="w", shape=(1,), dtype=1)
    assert refused(message(tensors=[one] * 65_537)).field == "tensors"
    assert refused(message(tensors=[one, one])).field == "tensors[1].name"


@pytest.mark.parametrize("ranks", [0, 65, 2**32 - 1])
def test_ranks(ranks: int) -> None:
    assert refused(message(ranks=ranks)).field == "ranks"


@pytest.mark.parametrize("block_bytes", [1, 4095, 4097, 2**21 + 4096, 2**32 - 4096])
def test_block_sizes(block_bytes: int) -> None:
    assert refused(message(block_bytes=block_bytes)).field == "block_bytes"


@pytest.mark.parametrize(("field", "value"), [("reduction", 3), ("non_finite", 9), ("log_codec", 4), ("log_codec", -1)])
def test_enums(field: str, value: int) -> None:
    assert refused(message(**{field: value})).field == field


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("optimizer", "field"),
    [
        (pb.OptimizerSpec(), "optimizer"),
        (pb.OptimizerSpec(sgd=pb.Sgd(learning_rate=NAN)), "optimizer.learning_rate"),
        (pb.OptimizerSpec(sgd=pb.Sgd(learning_rate=-0.1)), "optimizer.learning_rate"),
        (pb.OptimizerSpec(sgd=pb.Sgd(learning_rate=INF)), "optimizer.learning_rate"),
        (pb.OptimizerSpec(sgd=pb.Sgd(learning_rate=0.1, weight_decay=NAN)), "optimizer.weight_decay"),
        (pb.OptimizerSpec(momentum=pb.Momentum(learning_rate=0.1, momentum=1.0)), "optimizer.momentum"),
        (pb.OptimizerSpec(momentum=pb.Momentum(learning_rate=0.1, momentum=NAN)), "optimizer.momentum"),
        (pb.OptimizerSpec(adam=pb.Adam(learning_rate=0.1, beta1=1.0, epsilon=1e-8)), "optimizer.beta1"),
        (pb.OptimizerSpec(adam=pb.Adam(learning_rate=0.1, beta2=-0.1, epsilon=1e-8)), "optimizer.beta2"),
        (pb.OptimizerSpec(adam=pb.Adam(learning_rate=0.1, beta2=0.9)), "optimizer.epsilon"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_optimizers(optimizer: Any, field: str) -> None:
    assert refused(message(optimizer=optimizer)).field == field


def test_numbers_beyond_float32_are_found_before_they_travel() -> None:
    for optimizer in (sgd(1e39), momentum(0.1, 1.0 - 1e-12), adam(beta2=0.99999999)):
        assert ModelSpec("m", (TensorSpec("w", (1,)),), optimizer, 1).validate()
