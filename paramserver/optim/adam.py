"""Adam (Kingma and Ba, 2015, algorithm 1), in the form of `torch.optim.Adam`.

The bias corrections need beta^t. A power would be a different function on every platform, so the powers are state: two
fp64 numbers a block, multiplied by beta at each update (RULES S13).
"""

from __future__ import annotations

import math

import numpy as np

from paramserver.optim.interface import CHUNK_ELEMENTS, Scratch, Update, canonicalise, mean
from paramserver.wire import spec


class Adam:
    """Slots: first moment, second moment. Scalars: beta1^t, beta2^t.

    first += (1 - beta1) * (gradient - first); second = beta2 * second + (1 - beta2) * gradient^2;
    weights -= learning_rate / (1 - beta1^t) * first / (sqrt(second) / sqrt(1 - beta2^t) + epsilon)
    """

    slots = 2
    scalars: tuple[float, ...] = (1.0, 1.0)

    def __init__(self, numbers: spec.Adam) -> None:
        self._numbers = numbers
        self._scratch = Scratch(2)

    def update(self, update: Update) -> tuple[float, ...]:
        numbers = self._numbers
        rate = numbers.learning_rate if update.learning_rate is None else update.learning_rate
        power1, power2 = update.scalars[0] * numbers.beta1, update.scalars[1] * numbers.beta2
        # Scalars in fp64, each rounded to fp32 once: the same on every machine (sqrt is exact to the last bit).
        stride = np.float32(rate / (1.0 - power1))
        correction = np.float32(math.sqrt(1.0 - power2))
        beta2, keep1, keep2 = (
            np.float32(numbers.beta2),
            np.float32(1.0 - numbers.beta1),
            np.float32(1.0 - numbers.beta2),
        )
        decay, epsilon = np.float32(numbers.weight_decay), np.float32(numbers.epsilon)
        for start in range(0, update.out.size, CHUNK_ELEMENTS):
            part = slice(start, start + CHUNK_ELEMENTS)
            weights, out = update.weights[part], update.out[part]
            first, second = update.slots_out[0][part], update.slots_out[1][part]
            work = self._scratch(0, out.size)
            summed = self._scratch(1, out.size)
            gradient = mean(update.gradient_part(part, summed), update.count, weights, decay, summed, work)
            np.subtract(gradient, update.slots[0][part], out=work)
            np.multiply(work, keep1, out=work)
            np.add(update.slots[0][part], work, out=first)
            np.multiply(gradient, gradient, out=work)
            np.multiply(work, keep2, out=work)
            np.multiply(update.slots[1][part], beta2, out=second)
            np.add(second, work, out=second)
            np.sqrt(second, out=work)
            np.divide(work, correction, out=work)
            np.add(work, epsilon, out=work)
            np.divide(first, work, out=work)
            np.multiply(work, stride, out=work)
            np.subtract(weights, work, out=out)
            for values in (out, first, second):
                canonicalise(values)
        return power1, power2
