"""What an optimizer is: one update of one block as a pure function.

Invariants (RULES S13): only elementwise + - * / sqrt in a fixed order of operations, each rounded once; no reductions,
no pow, no BLAS, nothing that depends on threads, alignment or the length of a chunk: every replica computes the same
bits. A NaN is written in one form only. Inputs are never written to, unless an output is the same array as its own
input (slots may be updated in place; weights never are). Must not know: versions, steps, commands, where buffers
come from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from paramserver.wire import codecs
from paramserver.wire.codecs import Values
from paramserver.wire.layout import FLOAT, Flat

CHUNK_ELEMENTS = 131_072
"""Elements worked on at once: arrays of 512 KiB stay in cache from one operation to the next, and each operation is
long enough that taking back the interpreter's lock after it costs little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """One update of a block of n elements.

    weights, gradient: (n,), read only. gradient is the sum over contributions, which may be encoded; it is divided by
        `count`.
    slots: one (n,) array for each of `Optimizer.slots`; `slots_out` may be the same arrays.
    scalars: fp64 state of the block, `Optimizer.scalars` at first.
    learning_rate: overrides the optimizer's own when given (RULES S11).
    out: (n,), receives the new weights; shares no memory with any input.
    """

    weights: Flat
    gradient: Values
    count: int
    slots: tuple[Flat, ...]
    scalars: tuple[float, ...]
    out: Flat
    slots_out: tuple[Flat, ...]
    learning_rate: float | None = None

    def gradient_part(self, part: slice, scratch: Flat) -> Flat:
        """Elements of the gradient: as they are, or decoded into `scratch`."""
        return codecs.piece(self.gradient, part, scratch)


class Optimizer(Protocol):
    """One optimizer with its numbers fixed. Not for two threads at once: it owns scratch memory."""

    @property
    def slots(self) -> int:
        """fp32 arrays it keeps beside the weights, zeros at first."""

    @property
    def scalars(self) -> tuple[float, ...]:
        """fp64 numbers it keeps for each block, at first."""

    def update(self, update: Update) -> tuple[float, ...]:
        """Write `out` and `slots_out`; returns the block's new scalars."""


class Scratch:
    """Temporary chunks, allocated once."""

    __slots__ = ("_chunks",)

    def __init__(self, chunks: int) -> None:
        self._chunks = [np.empty(CHUNK_ELEMENTS, FLOAT) for _ in range(chunks)]

    def __call__(self, number: int, elements: int) -> Flat:
        return self._chunks[number][:elements]


_NAN = np.frombuffer(b"\x00\x00\xc0\x7f", FLOAT)[0]
"""The one form of NaN in stored state: quiet, positive, no payload."""


def canonicalise(values: Flat) -> None:
    """Give every NaN its one form, in place. What x * NaN looks like differs between processors."""
    # Only looked for, so a reduction may do: the largest is NaN if any is. It takes half the time of a mask.
    if values.size and np.isnan(np.maximum.reduce(values)):
        values[np.isnan(values)] = _NAN


def mean(gradient: Flat, count: int, weights: Flat, weight_decay: np.float32, scratch: Flat, spare: Flat) -> Flat:
    """gradient / count + weight_decay * weights: in `scratch` (where the gradient may be), or the gradient itself where
    nothing changes it. `spare` is overwritten."""
    if count != 1:
        gradient = np.divide(gradient, np.float32(count), out=scratch)
    if weight_decay != 0:
        np.multiply(weights, weight_decay, out=spare)
        gradient = np.add(gradient, spare, out=scratch)
    return gradient
