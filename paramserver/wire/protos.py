"""Specs and views to protobuf and back: protobuf objects go no further than here.

Invariant: `spec_from_proto(spec_to_proto(s)) == s` for a valid spec. What comes in may be anything: unknown enum
values are refused here, ranges by `ModelSpec.validate()`. Must not know: servers, arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from paramserver.v1 import paramserver_pb2 as pb
from paramserver.wire.errors import invalid, refuse_problems
from paramserver.wire.spec import (
    BLOCK_BYTES_DEFAULT,
    Adam,
    Codec,
    DType,
    ModelSpec,
    Momentum,
    NonFinite,
    OptimizerSpec,
    Reduction,
    Sgd,
    TensorSpec,
)

E = TypeVar("E")

KNOWN_SPECS_MAX = 32
"""Messages of specs that are kept; further ones are made again."""


@dataclass(frozen=True, slots=True)
class View:
    """Which lease holds each rank from `first_step` on (RULES S8); lease epoch 0: never taken."""

    number: int
    first_step: int
    lease_epochs: tuple[int, ...]


def enum_value(kind: Callable[[int], E], field: str, value: int) -> E:
    """The member of an enum, or a refusal that names the field."""
    try:
        return kind(value)
    except ValueError:
        names = ", ".join(member.name for member in kind)  # type: ignore[attr-defined]
        raise invalid(field, f"one of {names}", value) from None


def optimizer_to_proto(optimizer: OptimizerSpec) -> Any:
    match optimizer:
        case Sgd(rate, decay):
            return pb.OptimizerSpec(sgd=pb.Sgd(learning_rate=rate, weight_decay=decay))
        case Momentum(rate, momentum, nesterov, decay):
            value = pb.Momentum(learning_rate=rate, momentum=momentum, nesterov=nesterov, weight_decay=decay)
            return pb.OptimizerSpec(momentum=value)
        case Adam(rate, beta1, beta2, epsilon, decay):
            adam = pb.Adam(learning_rate=rate, beta1=beta1, beta2=beta2, epsilon=epsilon, weight_decay=decay)
            return pb.OptimizerSpec(adam=adam)


def optimizer_from_proto(message: Any) -> OptimizerSpec:
    match message.WhichOneof("kind"):
        case "sgd":
            return Sgd(message.sgd.learning_rate, message.sgd.weight_decay)
        case "momentum":
            kind = message.momentum
            return Momentum(kind.learning_rate, kind.momentum, kind.nesterov, kind.weight_decay)
        case "adam":
            kind = message.adam
            return Adam(kind.learning_rate, kind.beta1, kind.beta2, kind.epsilon, kind.weight_decay)
        case _:
            raise invalid("optimizer", "one of sgd, momentum, adam", "none of them")


def spec_to_proto(spec: ModelSpec) -> Any:
    return pb.ModelSpec(
        name=spec.name,
        tensors=[pb.TensorSpec(name=t.name, shape=t.shape, dtype=int(t.dtype)) for t in spec.tensors],  # type: ignore[arg-type]
        optimizer=optimizer_to_proto(spec.optimizer),
        ranks=spec.ranks,
        reduction=int(spec.reduction),  # type: ignore[arg-type]
        non_finite=int(spec.non_finite),  # type: ignore[arg-type]
        block_bytes=spec.block_bytes,
        # Left out for fp32: such a spec has the bytes that it had before there was a choice.
        log_codec=int(spec.log_codec) if spec.log_codec is not Codec.FP32 else 0,  # type: ignore[arg-type]
    )


class _Same:
    """A spec as a key by identity: comparing two takes as long as making the message."""

    __slots__ = ("spec",)

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    def __hash__(self) -> int:
        return id(self.spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.spec is self.spec


@lru_cache(maxsize=KNOWN_SPECS_MAX)
def _known(key: _Same) -> Any:
    return spec_to_proto(key.spec)


def shared_spec_proto(spec: ModelSpec) -> Any:
    """The spec's message, made once for a spec that is told often (its tensors may be thousands). Never to be
    changed: it is copied when it is put into another message."""
    return _known(_Same(spec))


def spec_from_proto(message: Any) -> ModelSpec:
    """The spec, not yet validated. Reduction, policy, block size and the log's codec may be left out: mean, reject,
    1 MiB, fp32. Raises `Refusal` for values outside their enum."""
    return ModelSpec(
        name=message.name,
        tensors=tuple(
            TensorSpec(t.name, tuple(t.shape), enum_value(DType, f"tensors[{i}].dtype", t.dtype))
            for i, t in enumerate(message.tensors)
        ),
        optimizer=optimizer_from_proto(message.optimizer),
        ranks=message.ranks,
        reduction=enum_value(Reduction, "reduction", message.reduction or Reduction.MEAN),
        non_finite=enum_value(NonFinite, "non_finite", message.non_finite or NonFinite.REJECT),
        block_bytes=message.block_bytes or BLOCK_BYTES_DEFAULT,
        log_codec=enum_value(Codec, "log_codec", message.log_codec or Codec.FP32),
    )


def valid_spec_from_proto(message: Any) -> ModelSpec:
    """The spec; raises `Refusal` (INVALID_ARGUMENT) naming every problem."""
    spec = spec_from_proto(message)
    refuse_problems(spec.validate())
    return spec


def view_to_proto(view: View) -> Any:
    return pb.View(number=view.number, first_step=view.first_step, lease_epochs=view.lease_epochs)


def view_from_proto(message: Any) -> View:
    return View(message.number, message.first_step, tuple(message.lease_epochs))
