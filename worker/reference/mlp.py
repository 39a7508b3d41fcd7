"""A multi-layer perceptron: rectified linear layers, softmax and cross-entropy, with its gradient written out.

Owns names and shapes of its tensors, initial values, logits, loss and gradient. Invariants: a function of its
arguments, of their type; the same calls give the same bits on the same machine and library. Runs on the `xp` it is
given (NumPy or CuPy). Must not know: servers, data sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from worker.reference.initial import he_uniform
from worker.reference.layers import Array, Gradients, Sink, dense, mean_cross_entropy, product, rectified, total

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
        """Host arrays: weights as `he_uniform`, biases zero."""
        values: dict[str, npt.NDArray[np.float32]] = {}
        for layer in range(self.layers):
            inputs, outputs = self.sizes[layer], self.sizes[layer + 1]
            values[weight_name(layer)] = he_uniform(_INIT_DOMAIN, seed, layer, (inputs, outputs), inputs)
            values[bias_name(layer)] = np.zeros(outputs, dtype=np.float32)
        return values

    def loss_and_gradient(
        self,
        weights: Mapping[str, Array],
        images: Array,
        labels: Array,
        scale: float = 1.0,
        into: Sink | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        """Mean cross-entropy over the batch (a scalar array), and the gradient of `scale` times it, by tensor.
        images [n, ...] of sizes[0] values each, labels [n] integers. Each tensor's goes to `into`, too, before the next
        is begun."""
        xp = self._xp
        inputs = self._inputs(weights, images)
        logits = self._affine(weights, self.layers - 1, inputs[-1])
        loss, upstream = mean_cross_entropy(xp, logits, labels, scale)
        gradient = Gradients(into)
        for layer in reversed(range(self.layers)):
            gradient[weight_name(layer)] = product(xp, inputs[layer].T, upstream)
            gradient[bias_name(layer)] = total(upstream)
            if layer > 0:
                # The input of this layer is zero exactly where the rectifier below was shut.
                upstream = product(xp, upstream, weights[weight_name(layer)].T) * (inputs[layer] > 0)
        return loss, gradient

    def logits(self, weights: Mapping[str, Array], images: Array) -> Array:
        """[n, classes]; the largest is the most likely class."""
        return self._affine(weights, self.layers - 1, self._inputs(weights, images)[-1])

    def _inputs(self, weights: Mapping[str, Array], images: Array) -> list[Array]:
        """Of each layer."""
        inputs = [images.reshape(images.shape[0], -1)]
        for layer in range(self.layers - 1):
            inputs.append(rectified(self._xp, self._affine(weights, layer, inputs[-1])))
        return inputs

    def _affine(self, weights: Mapping[str, Array], layer: int, inputs: Array) -> Array:
        return dense(self._xp, inputs, weights[weight_name(layer)], weights[bias_name(layer)])


def weight_name(layer: int) -> str:
    return f"layer{layer}.weight"


def bias_name(layer: int) -> str:
    return f"layer{layer}.bias"
