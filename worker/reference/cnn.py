"""A convolutional network: three times 3 x 3 convolution and 2 x 2 pooling, a dense layer, softmax and cross-entropy,
with its gradient written out.

    28 x 28, valid:  26 -> 13,  11 -> 5,  3 -> 1;   8 x 8, same:  8 -> 4,  4 -> 2,  2 -> 1

Owns names and shapes of its tensors, initial values, logits, loss and gradient. Invariants: a function of its
arguments, of their type; the same calls give the same bits on the same machine and library. Runs on the `xp` it is
given (NumPy or CuPy). Must not know: servers, data sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from worker.reference.convolution import overlapped, pooled, unpooled, windows
from worker.reference.initial import he_uniform
from worker.reference.layers import Array, Gradients, Sink, dense, mean_cross_entropy, product, rectified, total

SIDE = 3
"""Of the convolutions' windows."""
FILTERS = (32, 64, 128)
UNITS = 128
"""Of the dense layer before the last."""
Padding = Literal["valid", "same"]
_INIT_DOMAIN = 0x636E_6E69_6E69_74  # "cnninit"


@dataclass(frozen=True, slots=True)
class _Convolved:
    """What the gradient of one convolution needs. `shape` of its input; `rows`: its windows; `values` before pooling,
    `largest` after it, `outputs` after bias and rectifier."""

    shape: tuple[int, int, int, int]
    rows: Array
    values: Array
    largest: Array
    outputs: Array


class Cnn:
    """`image`: (height, width) of images with one channel. `padding`: "valid" shrinks by two with each convolution,
    "same" keeps the size; None: "valid" where images are large enough for it (22 x 22).
    Tensors: `conv<i>.weight` [3, 3, channels, filters[i]], `dense<i>.weight` [inputs, outputs], and a `.bias` of each.

    Raises ValueError when the image is too small."""

    def __init__(
        self,
        image: tuple[int, int],
        classes: int,
        xp: Any = np,
        *,
        padding: Padding | None = None,
        filters: Sequence[int] = FILTERS,
        units: int = UNITS,
    ) -> None:
        self.image = image
        self._filters = tuple(filters)
        self._xp = xp
        valid = self._pooled_size(0)
        self.padding: Padding = padding or ("valid" if min(valid) >= 1 else "same")
        self._margin = SIDE // 2 if self.padding == "same" else 0
        height, width = self._pooled_size(self._margin)
        if min(height, width) < 1:
            raise ValueError(
                f"images of {image[0]} x {image[1]} are too small for {len(self._filters)} poolings "
                f"with padding {self.padding}; 8 x 8 is enough with padding same, 22 x 22 with valid"
            )
        self._sizes = (height * width * self._filters[-1], units, classes)

    def _pooled_size(self, margin: int) -> tuple[int, int]:
        height, width = self.image
        for _ in self._filters:
            height, width = ((size + 2 * margin - SIDE + 1) // 2 for size in (height, width))
        return height, width

    def shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for layer, (channels, filters) in enumerate(zip((1, *self._filters[:-1]), self._filters, strict=True)):
            shapes[f"conv{layer}.weight"] = (SIDE, SIDE, channels, filters)
            shapes[f"conv{layer}.bias"] = (filters,)
        for layer, (inputs, outputs) in enumerate(zip(self._sizes[:-1], self._sizes[1:], strict=True)):
            shapes[f"dense{layer}.weight"] = (inputs, outputs)
            shapes[f"dense{layer}.bias"] = (outputs,)
        return shapes

    def initial(self, seed: int) -> dict[str, npt.NDArray[np.float32]]:
        """Host arrays: weights as `he_uniform`, biases zero."""
        values: dict[str, npt.NDArray[np.float32]] = {}
        for layer, (name, shape) in enumerate(self.shapes().items()):
            if name.endswith(".bias"):
                values[name] = np.zeros(shape, dtype=np.float32)
            else:
                values[name] = he_uniform(_INIT_DOMAIN, seed, layer, shape, int(np.prod(shape[:-1])))
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
        images [n, height, width], labels [n] integers. Each tensor's goes to `into`, too, before the next is begun."""
        xp = self._xp
        tape = self._convolve(weights, images)
        flat = self._flat(tape[-1].outputs)
        hidden = rectified(xp, dense(xp, flat, weights["dense0.weight"], weights["dense0.bias"]))
        logits = dense(xp, hidden, weights["dense1.weight"], weights["dense1.bias"])
        loss, upstream = mean_cross_entropy(xp, logits, labels, scale)

        gradient = Gradients(into)
        for layer, inputs in ((1, hidden), (0, flat)):
            gradient[f"dense{layer}.weight"] = product(xp, inputs.T, upstream)
            gradient[f"dense{layer}.bias"] = total(upstream)
            # Both inputs are zero exactly where the rectifier that made them was shut.
            upstream = product(xp, upstream, weights[f"dense{layer}.weight"].T) * (inputs > 0)
        upstream = upstream.reshape(tape[-1].outputs.shape)
        for layer in reversed(range(len(tape))):
            upstream = self._convolution_gradient(weights, tape, layer, upstream, gradient)
        return loss, gradient

    def logits(self, weights: Mapping[str, Array], images: Array) -> Array:
        """[n, classes]; the largest is the most likely class."""
        xp = self._xp
        flat = self._flat(self._convolve(weights, images)[-1].outputs)
        hidden = rectified(xp, dense(xp, flat, weights["dense0.weight"], weights["dense0.bias"]))
        return dense(xp, hidden, weights["dense1.weight"], weights["dense1.bias"])

    def _convolve(self, weights: Mapping[str, Array], images: Array) -> list[_Convolved]:
        xp = self._xp
        tape: list[_Convolved] = []
        inputs = images.reshape(images.shape[0], *self.image, 1)
        for layer, filters in enumerate(self._filters):
            rows = windows(xp, inputs, SIDE, self._margin)
            values = product(xp, rows, weights[f"conv{layer}.weight"].reshape(-1, filters))
            down, across = (size + 2 * self._margin - SIDE + 1 for size in inputs.shape[1:3])
            values = values.reshape(-1, down, across, filters)
            # Bias and rectifier never change which value is the largest: after pooling they are a quarter of the work
            # and give the same bits.
            largest = pooled(xp, values)
            outputs = rectified(xp, largest + weights[f"conv{layer}.bias"])
            tape.append(_Convolved(inputs.shape, rows, values, largest, outputs))
            inputs = outputs
        return tape

    def _convolution_gradient(
        self,
        weights: Mapping[str, Array],
        tape: Sequence[_Convolved],
        layer: int,
        upstream: Array,
        gradient: dict[str, Array],
    ) -> Array:
        """Adds to `gradient`. `upstream` is that of pools, behind the rectifier; returned: of the layer below."""
        xp, made = self._xp, tape[layer]
        weight = weights[f"conv{layer}.weight"]
        filters = weight.shape[-1]
        gradient[f"conv{layer}.bias"] = total(upstream)
        by_value = unpooled(xp, upstream, made.values, made.largest).reshape(-1, filters)
        gradient[f"conv{layer}.weight"] = product(xp, made.rows.T, by_value).reshape(weight.shape)
        if layer == 0:
            return None
        by_row = product(xp, by_value, weight.reshape(-1, filters).T)
        below = overlapped(xp, by_row, made.shape, SIDE, self._margin)
        return below * (tape[layer - 1].outputs > 0)

    @staticmethod
    def _flat(outputs: Array) -> Array:
        return outputs.reshape(outputs.shape[0], -1)
