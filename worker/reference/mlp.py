"""A multi-layer perceptron: rectified linear layers, softmax and cross-entropy, with its gradient written out.

Owns names and shapes of its tensors, initial values, loss, gradient and prediction. Invariants: everything is float32
and a function of its arguments; the same calls give the same bits on the same machine and library. Runs on the `xp` it
is given (NumPy or CuPy). Must not know: servers, data sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = Any
"""An array of the namespace in use."""

_INIT_DOMAIN = 0x6D6C_7069_6E69_74  # "mlpinit"


class Mlp:
    """`sizes`: units by layer, inputs first and classes last, such as (64, 128, 64, 10).
    Tensors: `layer<i>.weight` [sizes[i], sizes[i+1]] and `layer<i>.bias` [sizes[i+1]]."""

    def __init__(self, sizes: Sequence[int], xp: Any = np) -> None:
        self.sizes = tuple(sizes)
        self.layers = len(self.sizes) - 1
        self._xp = xp

    def shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for layer, (inputs, outputs) in enumerate(zip(self.sizes[:-1], self.sizes[1:], strict=True)):
            shapes[weight_name(layer)] = (inputs, outputs)
            shapes[bias_name(layer)] = (outputs,)
        return shapes

    def initial(self, seed: int) -> dict[str, npt.NDArray[np.float32]]:
        """Host arrays: weights uniform in ± sqrt(6 / inputs) (He et al. 2015), biases zero."""
        values: dict[str, npt.NDArray[np.float32]] = {}
        for layer in range(self.layers):
            inputs, outputs = self.sizes[layer], self.sizes[layer + 1]
            limit = np.sqrt(6.0 / inputs)
            uniform = _uniform(seed, layer, inputs * outputs)
            values[weight_name(layer)] = ((2.0 * uniform - 1.0) * limit).astype(np.float32).reshape(inputs, outputs)
            values[bias_name(layer)] = np.zeros(outputs, dtype=np.float32)
        return values

    def loss_and_gradient(
        self, weights: Mapping[str, Array], images: Array, labels: Array
    ) -> tuple[Array, dict[str, Array]]:
        """Mean cross-entropy over the batch (a scalar array) and its gradient, by tensor.
        images [n, sizes[0]] float32, labels [n] integers."""
        xp = self._xp
        count = images.shape[0]
        inputs = [images]
        for layer in range(self.layers - 1):
            inputs.append(xp.maximum(self._affine(weights, layer, inputs[-1]), np.float32(0.0)))
        logits = self._affine(weights, self.layers - 1, inputs[-1])

        shifted = logits - logits.max(axis=1, keepdims=True)
        exponents = xp.exp(shifted)
        totals = exponents.sum(axis=1, keepdims=True)
        rows = xp.arange(count)
        loss = (xp.log(totals[:, 0]) - shifted[rows, labels]).mean()

        upstream = exponents / totals
        upstream[rows, labels] -= np.float32(1.0)
        upstream *= np.float32(1.0 / count)
        gradient: dict[str, Array] = {}
        for layer in reversed(range(self.layers)):
            gradient[weight_name(layer)] = inputs[layer].T @ upstream
            gradient[bias_name(layer)] = upstream.sum(axis=0)
            if layer > 0:
                # The input of this layer is zero exactly where the rectifier below was shut.
                upstream = (upstream @ weights[weight_name(layer)].T) * (inputs[layer] > 0)
        return loss, gradient

    def predict(self, weights: Mapping[str, Array], images: Array) -> Array:
        """Most likely class of each image: [n] integers."""
        hidden = images
        for layer in range(self.layers - 1):
            hidden = self._xp.maximum(self._affine(weights, layer, hidden), np.float32(0.0))
        return self._affine(weights, self.layers - 1, hidden).argmax(axis=1)

    def accuracy(self, weights: Mapping[str, Array], images: Array, labels: Array) -> float:
        return float((self.predict(weights, images) == labels).mean())

    @staticmethod
    def _affine(weights: Mapping[str, Array], layer: int, inputs: Array) -> Array:
        return inputs @ weights[weight_name(layer)] + weights[bias_name(layer)]


def weight_name(layer: int) -> str:
    return f"layer{layer}.weight"


def bias_name(layer: int) -> str:
    return f"layer{layer}.bias"


def _uniform(seed: int, layer: int, count: int) -> npt.NDArray[np.float64]:
    """[count] in [0, 1), from raw Philox words, which no NumPy release may change."""
    key = np.array([seed & _WORD, _INIT_DOMAIN], dtype=np.uint64)
    counter = np.array([0, layer, 0, 0], dtype=np.uint64)
    raw = np.asarray(np.random.Philox(key=key, counter=counter).random_raw(count), dtype=np.uint64)
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


_WORD = (1 << 64) - 1
