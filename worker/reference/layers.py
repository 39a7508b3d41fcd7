"""Dense layers and the loss at the end, forward and backward, on NumPy or CuPy.

Invariants: results have the type of the operands and are a function of them; the loss and its exponents are computed in
at least float32. Only what both libraries have is used, and Python's own scalars, which leave float16 what it is. Must
not know: networks, weights by name.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

Array = Any
"""An array of the namespace in use."""


class Sink(Protocol):
    """Takes gradients by tensor name as they are made: such as `worker.device.link.Link`."""

    def __setitem__(self, name: str, gradient: Array) -> None: ...


class Gradients(dict[str, Array]):
    """By tensor name. What is set is handed on to `into` at once."""

    def __init__(self, into: Sink | None = None) -> None:
        super().__init__()
        self._into = into

    def __setitem__(self, name: str, gradient: Array) -> None:
        super().__setitem__(name, gradient)
        if self._into is not None:
            self._into[name] = gradient


def product(xp: Any, left: Array, right: Array) -> Array:
    """left [m, k] times right [k, n]. In float16 sums are float32 and rounded once, as a GPU's matrix units do:
    cuBLAS by itself, NumPy (which has no BLAS for float16) by way of float32."""
    if xp is np and left.dtype == np.float16:
        return (left.astype(np.float32) @ right.astype(np.float32)).astype(np.float16)
    return left @ right


def dense(xp: Any, inputs: Array, weight: Array, bias: Array) -> Array:
    """inputs [n, k], weight [k, m], bias [m]: [n, m]."""
    return product(xp, inputs, weight) + bias


def rectified(xp: Any, values: Array) -> Array:
    return xp.maximum(values, 0.0)


def total(values: Array) -> Array:
    """Sums over all axes but the last; of float16 in float32, rounded once."""
    rows = values.reshape(-1, values.shape[-1])
    if rows.dtype == np.float16:
        return rows.sum(axis=0, dtype=np.float32).astype(np.float16)
    return rows.sum(axis=0)


def cross_entropy(xp: Any, logits: Array, labels: Array) -> tuple[Array, Array]:
    """Of a softmax. logits [n, classes], labels [n] integers: each row's loss [n] and its probabilities [n, classes],
    in float32 where logits are float16."""
    if logits.dtype == np.float16:
        logits = logits.astype(np.float32)
    shifted = logits - logits.max(axis=1, keepdims=True)
    exponents = xp.exp(shifted)
    totals = exponents.sum(axis=1, keepdims=True)
    rows = xp.arange(logits.shape[0])
    return xp.log(totals[:, 0]) - shifted[rows, labels], exponents / totals


def mean_cross_entropy(xp: Any, logits: Array, labels: Array, scale: float = 1.0) -> tuple[Array, Array]:
    """The mean loss (a scalar array), and the gradient of `scale` times it by logits, of the logits' type."""
    count = logits.shape[0]
    losses, upstream = cross_entropy(xp, logits, labels)
    upstream[xp.arange(count), labels] -= 1.0
    upstream *= scale / count
    return losses.mean(), upstream.astype(logits.dtype, copy=False)
