"""What a model is: its tensors, its optimizer, its ranks, its policies.

Owns the frozen values and their limits. Invariants: a spec for which `validate()` is empty can be laid out, created
and applied without any further check of its fields; numbers that travel as float32 are rounded to float32 at once, so a
spec equals itself after a round trip. Must not know: servers, arrays, files; protobuf stays in `protos.py`.
"""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import TypeAlias

from paramserver.wire.errors import Problem, shown

NAME_CHARACTERS_MAX = 200
"""Of a model or a tensor."""
DIMENSIONS_MAX = 32
TENSORS_MAX = 65_536
"""A model."""
PARAMETERS_MAX = 2**36
"""A model; 256 GiB of fp32."""
BLOCKS_MAX = 262_144
"""A model; 256 GiB in blocks of 1 MiB."""
RANKS_MAX = 64
"""A model: contributors are a 64-bit mask, and the memory of open sums grows with the ranks (RULES S5)."""
BLOCK_BYTES_DEFAULT = 1 << 20
BLOCK_BYTES_MIN = 4096
BLOCK_BYTES_MAX = 2 << 20
"""Beyond 2 MiB messages only get slower, and a message must stay under the default limit of 4 MiB."""
BLOCK_BYTES_MULTIPLE = 4096
BLOCKS_TO_SPREAD = 32
"""A model with so many of the largest blocks is served well by them: what a block costs beside its bytes (messages,
wake-ups, the log's bookkeeping) is paid half as often, and there are enough to work on several at once and to spread
them over groups."""


def usual_block_bytes(parameters: int) -> int:
    """Size of a model's blocks where its creator does not say."""
    large = parameters * 4 >= BLOCKS_TO_SPREAD * BLOCK_BYTES_MAX
    return BLOCK_BYTES_MAX if large else BLOCK_BYTES_DEFAULT


class DType(IntEnum):
    FLOAT32 = 1


class Reduction(IntEnum):
    MEAN = 1
    """The sum of the contributions divided by their count, in apply."""
    SUM = 2


class Codec(IntEnum):
    """How a block of floats is written: little-endian, nothing else. See `codecs.py`."""

    FP32 = 1
    BF16 = 2
    """The upper half of an fp32: its range, 8 bits of precision."""
    FP16 = 3
    """IEEE 754 half precision: up to 65504, 11 bits of precision."""


CODEC_NAMES = {
    "fp32": Codec.FP32,
    "bf16": Codec.BF16,
    "fp16": Codec.FP16,
    "float32": Codec.FP32,
    "bfloat16": Codec.BF16,
    "float16": Codec.FP16,
}


def codec_named(name: str | Codec, field: str = "codec") -> Codec:
    """The codec of that name. Raises ValueError that says which there are."""
    found = CODEC_NAMES.get(name) if isinstance(name, str) else name
    if not isinstance(found, Codec):
        raise ValueError(f"{field} {name!r}: expected one of {', '.join(map(repr, CODEC_NAMES))}")
    return found


class NonFinite(IntEnum):
    """What a NaN or an infinity in a gradient does (RULES S10). The worker decides for the whole gradient."""

    REJECT = 1
    SKIP = 2
    ALLOW = 3


def float32(value: float) -> float:
    """The nearest float32, as a Python float; beyond its range infinity."""
    return float(ctypes.c_float(value).value)


def _shortest(value: float) -> str:
    """As a person would write a float32: 0.004, not 0.004000000189989805."""
    if isinstance(value, bool):
        return str(value)
    texts = (f"{value:.{digits}g}" for digits in range(6, 10))
    return next((text for text in texts if float32(float(text)) == value), repr(value))


@dataclass(frozen=True, slots=True)
class _Hyperparameters:
    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, bool):
                object.__setattr__(self, field.name, float32(value))

    def __str__(self) -> str:
        shown = (f"{field.name}={_shortest(getattr(self, field.name))}" for field in fields(self))
        return f"{type(self).__name__}({', '.join(shown)})"

    def _numbers(self, *, below_one: tuple[str, ...] = ()) -> Iterator[Problem]:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool):
                continue
            if field.name in below_one:
                if not 0.0 <= value < 1.0:
                    yield Problem(f"optimizer.{field.name}", "a number >= 0 and < 1", repr(value))
            elif not (math.isfinite(value) and value >= 0.0):
                yield Problem(f"optimizer.{field.name}", "a finite number >= 0", repr(value))


def rate_problems(field: str, value: float) -> list[Problem]:
    """Of a learning rate that somebody asks for."""
    sound = math.isfinite(value) and value >= 0.0 and math.isfinite(float32(value))
    return [] if sound else [Problem(field, "a finite float32 >= 0", repr(value))]


@dataclass(frozen=True, slots=True)
class Sgd(_Hyperparameters):
    """weights -= learning_rate * (gradient + weight_decay * weights)"""

    learning_rate: float
    weight_decay: float = 0.0

    def validate(self) -> list[Problem]:
        return list(self._numbers())


@dataclass(frozen=True, slots=True)
class Momentum(_Hyperparameters):
    """As `torch.optim.SGD` with `momentum` and no dampening: velocity = momentum * velocity + gradient."""

    learning_rate: float
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0

    def validate(self) -> list[Problem]:
        return list(self._numbers(below_one=("momentum",)))


@dataclass(frozen=True, slots=True)
class Adam(_Hyperparameters):
    """As `torch.optim.Adam`; `weight_decay` is added to the gradient (not decoupled)."""

    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0

    def validate(self) -> list[Problem]:
        problems = list(self._numbers(below_one=("beta1", "beta2")))
        if self.epsilon == 0.0:
            # A weight whose gradient was always zero would become 0 / 0.
            problems.append(Problem("optimizer.epsilon", "a finite number > 0", "0.0"))
        return problems


OptimizerSpec: TypeAlias = Sgd | Momentum | Adam


def slot_names(optimizer: OptimizerSpec) -> tuple[str, ...]:
    """The arrays that an optimizer keeps beside the weights, each of their shape; zeros at first."""
    match optimizer:
        case Sgd():
            return ()
        case Momentum():
            return ("velocity",)
        case Adam():
            return ("first_moment", "second_moment")


def scalar_names(optimizer: OptimizerSpec) -> tuple[str, ...]:
    """The fp64 numbers that it keeps for each block."""
    return ("beta1_power", "beta2_power") if isinstance(optimizer, Adam) else ()


def sgd(learning_rate: float, *, weight_decay: float = 0.0) -> Sgd:
    """Plain stochastic gradient descent."""
    return Sgd(learning_rate, weight_decay)


def momentum(
    learning_rate: float, momentum: float = 0.9, *, nesterov: bool = False, weight_decay: float = 0.0
) -> Momentum:
    """Stochastic gradient descent with (optionally Nesterov's) momentum."""
    return Momentum(learning_rate, momentum, nesterov, weight_decay)


def adam(
    learning_rate: float = 1e-3,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
) -> Adam:
    """Adam (Kingma and Ba, 2015)."""
    return Adam(learning_rate, beta1, beta2, epsilon, weight_decay)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A named array. `()` is a scalar; no dimension is 0."""

    name: str
    shape: tuple[int, ...]
    dtype: DType = DType.FLOAT32

    @property
    def elements(self) -> int:
        """The product of the shape; each is 4 bytes."""
        return math.prod(self.shape)

    def validate(self, where: str) -> Iterator[Problem]:
        """What is wrong with it, with `where` in front of each field's name. Raises nothing."""
        yield from name_problems(f"{where}.name", self.name)
        if self.dtype not in tuple(DType):
            yield Problem(f"{where}.dtype", "FLOAT32", str(self.dtype))
        if len(self.shape) > DIMENSIONS_MAX:
            yield Problem(f"{where}.shape", f"at most {DIMENSIONS_MAX} dimensions", f"{len(self.shape)} dimensions")
        elif any(not isinstance(size, int) or size < 1 for size in self.shape):
            yield Problem(f"{where}.shape", "dimensions >= 1", repr(self.shape))
        elif self.elements > PARAMETERS_MAX:
            yield Problem(f"{where}.shape", f"at most {PARAMETERS_MAX} elements", repr(self.shape))


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model as its creator describes it. Tensors lie one after the other, in this order, in one flat space."""

    name: str
    tensors: tuple[TensorSpec, ...]
    optimizer: OptimizerSpec
    ranks: int
    reduction: Reduction = Reduction.MEAN
    non_finite: NonFinite = NonFinite.REJECT
    block_bytes: int = BLOCK_BYTES_DEFAULT
    log_codec: Codec = Codec.FP32
    """Of the sums in the log. Every replica applies what it decodes, so it decides about the bits (RULES S12)."""

    @property
    def parameters(self) -> int:
        return sum(tensor.elements for tensor in self.tensors)

    def validate(self) -> list[Problem]:
        """Every problem at once; empty when the spec may be used. Allocates nothing that grows with a shape."""
        problems = list(name_problems("name", self.name))
        problems += self.optimizer.validate()
        if not 1 <= self.ranks <= RANKS_MAX:
            problems.append(Problem("ranks", f"1 to {RANKS_MAX}", str(self.ranks)))
        if self.reduction not in tuple(Reduction):
            problems.append(Problem("reduction", "MEAN or SUM", str(self.reduction)))
        if self.non_finite not in tuple(NonFinite):
            problems.append(Problem("non_finite", "REJECT, SKIP or ALLOW", str(self.non_finite)))
        if self.log_codec not in tuple(Codec):
            problems.append(Problem("log_codec", "FP32, BF16 or FP16", str(self.log_codec)))
        sound_block = BLOCK_BYTES_MIN <= self.block_bytes <= BLOCK_BYTES_MAX
        if not sound_block or self.block_bytes % BLOCK_BYTES_MULTIPLE:
            expected = f"a multiple of {BLOCK_BYTES_MULTIPLE} from {BLOCK_BYTES_MIN} to {BLOCK_BYTES_MAX}"
            problems.append(Problem("block_bytes", expected, str(self.block_bytes)))
        tensor_problems = list(self._tensor_problems())
        if not tensor_problems and sound_block:
            tensor_problems += self._size_problems()
        return problems + tensor_problems

    def _tensor_problems(self) -> Iterator[Problem]:
        if not 1 <= len(self.tensors) <= TENSORS_MAX:
            yield Problem("tensors", f"1 to {TENSORS_MAX} tensors", f"{len(self.tensors)} tensors")
            return
        seen: set[str] = set()
        for position, tensor in enumerate(self.tensors):
            if not _plain(tensor):
                yield from tensor.validate(f"tensors[{position}]")
            if tensor.name in seen:
                yield Problem(f"tensors[{position}].name", "a name of its own", tensor.name)
            seen.add(tensor.name)

    def _size_problems(self) -> Iterator[Problem]:
        if self.parameters > PARAMETERS_MAX:
            yield Problem("tensors", f"at most {PARAMETERS_MAX} parameters", f"{self.parameters} parameters")
        elif (blocks := -(-self.parameters * 4 // self.block_bytes)) > BLOCKS_MAX:
            yield Problem("block_bytes", f"at most {BLOCKS_MAX} blocks", f"{blocks} blocks")


_PLAIN_NAME = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_.:-]{{0,{NAME_CHARACTERS_MAX - 1}}}")


def _plain(tensor: TensorSpec) -> bool:
    """Whether its `validate` finds nothing, of the usual kind of tensor, in a fraction of the time: a model may have
    thousands. False says nothing."""
    shape = tensor.shape
    if tensor.dtype is not DType.FLOAT32 or len(shape) > DIMENSIONS_MAX or not _PLAIN_NAME.fullmatch(tensor.name):
        return False
    return all(type(size) is int and size > 0 for size in shape) and math.prod(shape) <= PARAMETERS_MAX


def name_problems(field: str, name: str) -> Iterator[Problem]:
    """Names are shown in terminals and pages and may become file names of exports: printable, not path-like."""
    if not name:
        yield Problem(field, "a name", "an empty name")
    elif len(name) > NAME_CHARACTERS_MAX:
        yield Problem(field, f"at most {NAME_CHARACTERS_MAX} characters", f"{len(name)} characters")
    elif not name.isprintable() or name != name.strip():
        yield Problem(field, "printable characters, no space at the ends", shown(name))
    elif "/" in name or "\\" in name or name.startswith((".", "~")):
        yield Problem(field, "no path: no / or \\, no . or ~ at the start", shown(name))
