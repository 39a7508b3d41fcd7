"""A checkpoint of a model: what is in it, and how it stands in a file.

Owns the values, their names in the file, and every check of a file that was read. Names: a tensor's weights have its
own name; the optimizer's arrays are `optimizer/SLOT/TENSOR` (no tensor's name holds a slash), its numbers
`optimizer/scalars`, fp64, a row a block. Beside them stands one JSON text, which says what the file is, and the digest
of each array. Invariants: `unpacked(packed(c)) == c`; what `unpacked` returns has been checked against its own spec and
digests, in full, before anything else is done with it; it raises only CheckpointError. Must not know: clusters, file
formats (`checkpoint_files.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from paramserver.wire.checksum import digest
from paramserver.wire.layout import FLOAT, Flat, Layout
from paramserver.wire.spec import (
    Adam,
    Codec,
    ModelSpec,
    Momentum,
    NonFinite,
    OptimizerSpec,
    Reduction,
    Sgd,
    TensorSpec,
    rate_problems,
    scalar_names,
    slot_names,
)
from worker.errors import CheckpointError

KIND = "paramserver checkpoint"
VERSION = 1
OPTIMIZER, SCALARS = "optimizer/", "optimizer/scalars"
STEP_MAX = 2**62
TEXT_BYTES_MAX = 32 << 20
"""Of the JSON text: 65,536 tensors with names of 200 characters fit."""

Arrays: TypeAlias = dict[str, npt.NDArray[Any]]
_OPTIMIZERS: dict[str, type[OptimizerSpec]] = {"sgd": Sgd, "momentum": Momentum, "adam": Adam}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """All that training goes on with.

    weights (elements,); slots: one such array for each of `slot_names`; scalars (blocks, numbers) fp64. rates: (step,
    learning rate), ascending, of the changes of the learning rate: the last one up to `step`, and those that lie ahead.
    origin: where it was saved, for people.
    """

    spec: ModelSpec
    step: int
    weights: Flat
    slots: tuple[Flat, ...] = ()
    scalars: npt.NDArray[np.float64]
    rates: tuple[tuple[int, float], ...] = ()
    origin: str = ""

    @property
    def nbytes(self) -> int:
        return self.weights.nbytes * (1 + len(self.slots)) + self.scalars.nbytes


def packed(checkpoint: Checkpoint) -> tuple[Arrays, str]:
    """What a file holds: arrays by name (views), and the text."""
    layout = Layout(checkpoint.spec)
    arrays: Arrays = dict(layout.unflatten(checkpoint.weights))
    for name, slot in zip(slot_names(checkpoint.spec.optimizer), checkpoint.slots, strict=True):
        arrays |= {f"{OPTIMIZER}{name}/{tensor}": values for tensor, values in layout.unflatten(slot).items()}
    if checkpoint.scalars.size:
        arrays[SCALARS] = checkpoint.scalars
    arrays = {name: np.ascontiguousarray(values).reshape(values.shape) for name, values in arrays.items()}
    text = {
        "kind": KIND,
        "version": VERSION,
        "model": _spec_to_json(checkpoint.spec),
        "step": checkpoint.step,
        "learning_rates": [list(one) for one in checkpoint.rates],
        "origin": checkpoint.origin,
        "digests": {name: _digest(values) for name, values in arrays.items()},
    }
    return arrays, json.dumps(text)


def read_text(text: str) -> dict[str, Any]:
    """The JSON text of a file that says that it is one of ours, of a version that this program reads."""
    if len(text) > TEXT_BYTES_MAX:
        raise CheckpointError(f"its description has {len(text)} bytes", f"expected at most {TEXT_BYTES_MAX}")
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        raise CheckpointError("its description is no JSON", "the file is damaged, or not one of paramserver") from None
    if not isinstance(said, dict) or said.get("kind") != KIND:
        raise CheckpointError("it is no checkpoint of paramserver", "expected a file that `model.save` wrote")
    if said.get("version") != VERSION:
        raise CheckpointError(
            f"it is of version {str(said.get('version'))[:20]}, this program reads {VERSION}",
            "use a newer paramserver",
        )
    return said


def unpacked(arrays: Mapping[str, npt.NDArray[Any]], text: str) -> Checkpoint:
    """The checkpoint, every part of it checked."""
    said = read_text(text)
    try:
        spec = _spec_from_json(said["model"])
        step, digests = said["step"], said["digests"]
        rates = tuple((at, rate) for at, rate in said["learning_rates"])
        origin = str(said["origin"])[:500]
        numbers = [step, *(at for at, _ in rates)]
        sound = all(type(one) is int and 0 <= one < STEP_MAX for one in numbers) and isinstance(digests, dict)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"its description cannot be read: {error!r}"[:300], "the file is damaged") from None
    problems = spec.validate() + [
        problem
        for _, rate in rates
        for problem in (rate_problems("learning rate", rate) if isinstance(rate, int | float) else [rate])
    ]
    if problems or not sound or list(rates) != sorted(rates):
        cause = "; ".join(map(str, problems))[:300] or "steps or digests that cannot be"
        raise CheckpointError(f"its description is wrong: {cause}", "the file is damaged")
    layout = Layout(spec)
    names = slot_names(spec.optimizer)
    expected: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {t.name: (t.shape, FLOAT) for t in spec.tensors}
    for name in names:
        expected |= {f"{OPTIMIZER}{name}/{t.name}": (t.shape, FLOAT) for t in spec.tensors}
    scalars = len(scalar_names(spec.optimizer))
    if scalars:
        expected[SCALARS] = ((layout.blocks, scalars), np.dtype("<f8"))
    _check_arrays(arrays, expected, digests)
    parts = [layout.flatten({t.name: arrays[t.name] for t in spec.tensors})]
    for name in names:
        parts.append(layout.flatten({t.name: arrays[f"{OPTIMIZER}{name}/{t.name}"] for t in spec.tensors}))
    powers = np.array(arrays[SCALARS], np.float64) if scalars else np.empty((layout.blocks, 0), np.float64)
    if spec.non_finite is not NonFinite.ALLOW:
        _check_finite(arrays, expected)
    return Checkpoint(
        spec=spec, step=step, weights=parts[0], slots=tuple(parts[1:]), scalars=powers, rates=rates, origin=origin
    )


def _check_arrays(
    arrays: Mapping[str, npt.NDArray[Any]],
    expected: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]],
    digests: Mapping[str, Any],
) -> None:
    if set(arrays) != set(expected):
        missing, more = sorted(set(expected) - set(arrays)), sorted(set(arrays) - set(expected))
        what = f"array {missing[0]!r} is missing" if missing else f"array {more[0]!r} does not belong to it"
        raise CheckpointError(what[:300], "the file was cut, or changed by another program")
    for name, (shape, dtype) in expected.items():
        array = arrays[name]
        if array.shape != shape or array.dtype != dtype:
            raise CheckpointError(
                f"array {name!r}: expected {shape} {dtype.name}, received {array.shape} {array.dtype.name}"
            )
        if digests.get(name) != _digest(array):
            raise CheckpointError(f"array {name!r} is not what was saved: its digest differs", "the file is damaged")


def _check_finite(arrays: Mapping[str, npt.NDArray[Any]], names: Mapping[str, object]) -> None:
    for name in names:
        if not np.isfinite(arrays[name]).all():
            place = int(np.argmin(np.isfinite(arrays[name]).reshape(-1)))
            raise CheckpointError(
                f"array {name!r} element {place} is {arrays[name].reshape(-1)[place]}, which the model does not allow",
                "only a model with non_finite=ALLOW takes such values",
            )


def _digest(values: npt.NDArray[Any]) -> str:
    return digest([np.ascontiguousarray(values).reshape(-1).data.cast("B")]).hex()


# --- the spec as JSON -----------------------------------------------------------------------------------------------


def _spec_to_json(spec: ModelSpec) -> dict[str, Any]:
    kind = next(name for name, made in _OPTIMIZERS.items() if type(spec.optimizer) is made)
    return {
        "name": spec.name,
        "tensors": [[tensor.name, list(tensor.shape)] for tensor in spec.tensors],
        "optimizer": {"kind": kind, **asdict(spec.optimizer)},
        "ranks": spec.ranks,
        "reduction": spec.reduction.name,
        "non_finite": spec.non_finite.name,
        "block_bytes": spec.block_bytes,
        "log_codec": spec.log_codec.name,
    }


def _spec_from_json(said: Mapping[str, Any]) -> ModelSpec:
    """Not yet validated. Raises KeyError, TypeError, ValueError."""
    optimizer = dict(said["optimizer"])
    made = _OPTIMIZERS[optimizer.pop("kind")]
    numbers = (said["ranks"], said["block_bytes"])
    if not all(type(one) is int for one in numbers) or not all(
        isinstance(one, bool | int | float) for one in optimizer.values()
    ):
        raise ValueError("numbers expected")
    return ModelSpec(
        name=str(said["name"]),
        tensors=tuple(TensorSpec(str(name), tuple(shape)) for name, shape in said["tensors"]),
        optimizer=made(**optimizer),
        ranks=numbers[0],
        reduction=Reduction[said["reduction"]],
        non_finite=NonFinite[said["non_finite"]],
        block_bytes=numbers[1],
        log_codec=Codec[said["log_codec"]],
    )
