"""What a model is to be, as training code says it: a `Spec`, which has no name yet, and its mode.

    spec = paramserver.Spec({"w": (64, 10), "b": (10,)}, paramserver.adam(1e-3), ranks=2)
    model = client.model("mine", spec, rank=0, initial=zeros)

Invariants: a `Spec` that could be made is valid under any valid name, and may be used again and again; equal specs are
equal values. Must not know: servers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from paramserver.wire.errors import Problem, shown
from paramserver.wire.spec import (
    BLOCK_BYTES_DEFAULT,
    Codec,
    ModelSpec,
    NonFinite,
    OptimizerSpec,
    Reduction,
    TensorSpec,
    codec_named,
    name_problems,
    usual_block_bytes,
)
from worker.errors import InvalidArgument

Shapes: TypeAlias = "Mapping[str, Sequence[int] | Any] | Sequence[TensorSpec]"
"""name -> shape, in the order they lie in, or name -> array of that shape; or TensorSpecs."""


@dataclass(frozen=True, slots=True)
class Bsp:
    """Bulk-synchronous: a step ends when every rank has pushed it. Made by `bsp()`."""

    def __str__(self) -> str:
        return "bsp()"


def bsp() -> Bsp:
    """The synchronous mode, which is the default and the only one there is: each step applies the sum over all ranks'
    gradients once, and every rank computes the next one from the same weights."""
    return Bsp()


class Spec:
    """Tensors, optimizer, ranks and policies of a model; a frozen value."""

    __slots__ = ("_any_blocks", "_model")

    def __init__(
        self,
        tensors: Shapes,
        optimizer: OptimizerSpec,
        *,
        ranks: int = 1,
        mode: Bsp | None = None,
        reduction: Reduction = Reduction.MEAN,
        non_finite: NonFinite = NonFinite.REJECT,
        block_bytes: int | None = None,
        log_codec: str | Codec = "fp32",
    ) -> None:
        """tensors: name -> shape (a tuple of dimensions, each at least 1; `()` is a scalar), or name -> array, which
            stands for its shape only; in the order in which they lie. All are float32.
        optimizer: such as `paramserver.sgd(0.1)`; the servers run it.
        ranks: how many workers push each step, 1 to 64.
        mode: `bsp()`, which None stands for.
        reduction: MEAN or SUM over the ranks' gradients.
        non_finite: what a NaN or an infinity in a gradient does: REJECT (an error), SKIP (the step), or ALLOW.
        block_bytes: size of a block, the unit of everything: a multiple of 4096 up to 2 MiB. None: as the model has
            it, 1 MiB for a new one, 2 MiB if it is of 64 MiB or more.
        log_codec: "fp32", "bf16" or "fp16": in which the sum over all ranks is logged and replicated.

        Raises InvalidArgument, which names every field that is wrong, what was expected and what came."""
        check_mode(mode)
        if not isinstance(optimizer, OptimizerSpec):
            raise InvalidArgument(f"optimizer {optimizer!r}", "expected sgd(), momentum() or adam() of paramserver")
        log = codec_of("log_codec", log_codec)
        size = BLOCK_BYTES_DEFAULT if block_bytes is None else block_bytes
        for field, value in (("ranks", ranks), ("block_bytes", size)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise InvalidArgument(f"{field} {value!r}", "expected a whole number")
        model = ModelSpec("unnamed", _tensors(tensors), optimizer, ranks, reduction, non_finite, size, log)
        if problems := model.validate():
            raise InvalidArgument("; ".join(str(_named(problem, model)) for problem in problems))
        self._any_blocks = block_bytes is None
        self._model = replace(model, block_bytes=usual_block_bytes(model.parameters)) if block_bytes is None else model

    @classmethod
    def of(cls, model: ModelSpec) -> Spec:
        """That of a model there is (`Model.spec`), for another one of the same kind. Raises InvalidArgument."""
        return cls(
            model.tensors,
            model.optimizer,
            ranks=model.ranks,
            reduction=model.reduction,
            non_finite=model.non_finite,
            block_bytes=model.block_bytes,
            log_codec=model.log_codec,
        )

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """Name and shape of each, in the order in which they lie."""
        return self._model.tensors

    @property
    def optimizer(self) -> OptimizerSpec:
        """What the servers apply."""
        return self._model.optimizer

    @property
    def ranks(self) -> int:
        """How many workers push each step."""
        return self._model.ranks

    @property
    def parameters(self) -> int:
        """Elements of all tensors together; each is 4 bytes."""
        return self._model.parameters

    @property
    def any_blocks(self) -> bool:
        """Nobody asked for a size of blocks: a model that exists may have another one than this."""
        return self._any_blocks

    def named(self, name: str) -> ModelSpec:
        """The spec of a model of that name. Raises InvalidArgument for a name that none may have."""
        check_name("name", name)
        return replace(self._model, name=name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spec) and (self._any_blocks, self._model) == (other._any_blocks, other._model)

    def __hash__(self) -> int:
        return hash((self._any_blocks, self._model))

    def __repr__(self) -> str:
        return f"Spec({len(self.tensors)} tensors, {self.parameters} parameters, {self.optimizer}, ranks={self.ranks})"


def check_name(field: str, name: object) -> None:
    """Raises InvalidArgument: of a model or a tensor (FAULTS bad input 8)."""
    if not isinstance(name, str):
        raise InvalidArgument(f"{field} {name!r}", "expected a string")
    if problems := list(name_problems(field, name)):
        raise InvalidArgument("; ".join(map(str, problems)))


def check_mode(mode: object) -> None:
    """Raises InvalidArgument for all but bsp()."""
    if mode is not None and not isinstance(mode, Bsp):
        raise InvalidArgument(f"mode {mode!r}", "expected paramserver.bsp(); there are no other modes in this version")


def codec_of(field: str, value: str | Codec) -> Codec:
    """Raises InvalidArgument that says which there are."""
    try:
        return codec_named(value, field)
    except ValueError as error:
        cause, _, hint = str(error).partition(": ")
        raise InvalidArgument(cause, hint) from None


def _named(problem: Problem, model: ModelSpec) -> Problem:
    """A tensor by its name instead of its place in the list, which is what a caller knows it by."""
    found = re.fullmatch(r"tensors\[(\d+)\]\.(\w+)", problem.field)
    if not found:
        return problem
    name = shown(repr(model.tensors[int(found[1])].name))
    return replace(problem, field=f"tensor {name}: {found[2]}")


def _tensors(tensors: Shapes) -> tuple[TensorSpec, ...]:
    if isinstance(tensors, Mapping):
        return tuple(TensorSpec(_name(name), _shape(name, like)) for name, like in tensors.items())
    found = tuple(tensors)
    for one in found:
        if not isinstance(one, TensorSpec):
            raise InvalidArgument(f"tensors: {one!r}", "expected a mapping of name to shape, or TensorSpecs")
        _name(one.name)
    return found


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise InvalidArgument(f"tensor {name!r}", "expected a string as its name")
    return name


def _shape(name: str, like: Any) -> tuple[int, ...]:
    shape = getattr(like, "shape", like)
    try:
        return tuple(size if type(size) is int else size.__index__() for size in shape)
    except (TypeError, AttributeError):
        raise InvalidArgument(
            f"tensor {name!r}: shape {shape!r}", "expected a tuple of whole numbers, such as (64, 10), or an array"
        ) from None
