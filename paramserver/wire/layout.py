"""Where each tensor lies in a model's flat space, and how that space is cut into blocks.

Tensors lie one after the other in the order of the spec, row-major, as little-endian float32; block i is elements
[i * n, (i + 1) * n) with n = block_bytes / 4, the last one may be shorter. The one block order of a step is ascending
(RULES S5). Invariants: every element is in exactly one tensor and one block; what a step does for each tensor is done
inside NumPy, or was prepared before, so that ten thousand small tensors cost hardly more than one of their bytes. Must
not know: servers, codecs, sockets.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from operator import attrgetter, eq
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from paramserver.wire.errors import Problem, Reason, Refusal, invalid, refuse_problems
from paramserver.wire.spec import ModelSpec

Flat: TypeAlias = npt.NDArray[np.float32]
"""One-dimensional, contiguous float32."""

FLOAT = np.dtype("<f4")


class Layout:
    """The layout of a valid spec. Sizes are in elements unless the name says bytes."""

    __slots__ = ("_offsets", "_plan", "block_elements_full", "blocks", "elements", "spec")

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self._plan: _Plan | None = None
        self._offsets: list[int] = []
        self.elements = 0
        for tensor in spec.tensors:
            self._offsets.append(self.elements)
            self.elements += tensor.elements
        self.block_elements_full = spec.block_bytes // FLOAT.itemsize
        self.blocks = -(-self.elements // self.block_elements_full)

    def block_slice(self, block: int) -> slice:
        """The block's elements in the flat space. Raises `Refusal` for a block outside the model."""
        if not 0 <= block < self.blocks:
            raise invalid("block", f"0 to {self.blocks - 1}", block)
        start = block * self.block_elements_full
        return slice(start, min(start + self.block_elements_full, self.elements))

    def block_elements(self, block: int) -> int:
        place = self.block_slice(block)
        return int(place.stop - place.start)

    def block_bytes(self, block: int) -> int:
        """Size of the block's fp32 weights."""
        return self.block_elements(block) * FLOAT.itemsize

    def tensor_slice(self, position: int) -> slice:
        """The elements of the spec's tensor at that position."""
        start = self._offsets[position]
        return slice(start, start + self.spec.tensors[position].elements)

    def tensor_at(self, element: int) -> tuple[str, int]:
        """Name of the tensor that holds an element of the flat space, and the element's place in it (row-major)."""
        if not 0 <= element < self.elements:
            raise invalid("element", f"0 to {self.elements - 1}", element)
        position = bisect_right(self._offsets, element) - 1
        return self.spec.tensors[position].name, element - self._offsets[position]

    def flatten(self, tensors: Mapping[str, Any], out: Flat | None = None) -> Flat:
        """Copy named arrays into the flat space, cast to float32 if they are another kind of float.

        `out` (elements,) is written and returned if given. Raises `Refusal` (SPEC_MISMATCH as INVALID_ARGUMENT) that
        names every tensor which is missing, unknown, of another shape or not of floats; then nothing was written.
        """
        arrays = self._planned().arrays(tensors)
        if arrays is None:
            self._check(tensors)
            arrays = [np.asarray(tensors[tensor.name]) for tensor in self.spec.tensors]
        flat = np.empty(self.elements, FLOAT) if out is None else out
        if flat.shape != (self.elements,) or flat.dtype != FLOAT:
            raise ValueError(f"out: expected ({self.elements},) float32, received {flat.shape} {flat.dtype}")
        # One call for all: each is read in row-major order, and lies behind the one before.
        np.concatenate(arrays, axis=None, out=flat, casting="same_kind")
        return flat

    def unflatten(self, flat: Flat) -> dict[str, npt.NDArray[np.float32]]:
        """Named views into the flat space; nothing is copied."""
        if flat.shape != (self.elements,):
            raise ValueError(f"flat: expected ({self.elements},), received {flat.shape}")
        return self._planned().views(flat)

    def _planned(self) -> _Plan:
        """Made when it is first needed: servers lay nothing out."""
        if self._plan is None:
            self._plan = _Plan(self)
        return self._plan

    def _check(self, tensors: Mapping[str, Any]) -> None:
        problems: list[Problem] = []
        known = {tensor.name for tensor in self.spec.tensors}
        problems += [
            Problem(f"tensor {name!r}", "a tensor of the model", "an unknown one")
            for name in tensors
            if name not in known
        ]
        for tensor in self.spec.tensors:
            if tensor.name not in tensors:
                problems.append(Problem(f"tensor {tensor.name!r}", f"shape {tensor.shape}", "nothing"))
                continue
            array = np.asanyarray(tensors[tensor.name])
            if array.shape != tensor.shape:
                problems.append(Problem(f"tensor {tensor.name!r}", f"shape {tensor.shape}", f"shape {array.shape}"))
            elif array.dtype.kind != "f":
                problems.append(Problem(f"tensor {tensor.name!r}", "floats", str(array.dtype)))
        try:
            refuse_problems(problems)
        except Refusal as refusal:
            raise Refusal(
                Reason.SPEC_MISMATCH,
                refusal.message,
                code="INVALID_ARGUMENT",
                field=refusal.field,
                expected=refusal.expected,
                received=refusal.received,
            ) from None


class _Plan:
    """What laying out needs of each tensor, in the order of the spec."""

    __slots__ = ("_names", "_shapes", "_slices")

    def __init__(self, layout: Layout) -> None:
        tensors = layout.spec.tensors
        self._names = [tensor.name for tensor in tensors]
        self._shapes = [tensor.shape for tensor in tensors]
        self._slices = [layout.tensor_slice(position) for position in range(len(tensors))]

    def arrays(self, tensors: Mapping[str, Any]) -> list[npt.NDArray[Any]] | None:
        """The arrays in order, if they are just what the spec says; None: somebody has to look closer."""
        try:
            found = [tensors[name] for name in self._names]
        except KeyError:
            return None
        plain = len(tensors) == len(found) and set(map(type, found)) == {np.ndarray}
        # Shape by shape: a list of them all is what would set the cycle collector to work, each step.
        if not plain or not all(map(eq, map(_SHAPE, found), self._shapes)):
            return None
        return found if all(dtype.kind == "f" for dtype in set(map(_DTYPE, found))) else None

    def views(self, flat: Flat) -> dict[str, npt.NDArray[np.float32]]:
        return {
            name: flat[place] if len(shape) == 1 else flat[place].reshape(shape)
            for name, place, shape in zip(self._names, self._slices, self._shapes, strict=True)
        }


_SHAPE, _DTYPE = attrgetter("shape"), attrgetter("dtype")
