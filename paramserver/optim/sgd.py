"""Stochastic gradient descent, plain and with momentum, as in `torch.optim.SGD`."""

from __future__ import annotations

import numpy as np

from paramserver.optim.interface import CHUNK_ELEMENTS, Scratch, Update, canonicalise, mean
from paramserver.wire import spec


class Sgd:
    """weights - learning_rate * (gradient + weight_decay * weights); keeps nothing."""

    slots = 0
    scalars: tuple[float, ...] = ()

    def __init__(self, numbers: spec.Sgd) -> None:
        self._numbers = numbers
        self._scratch = Scratch(2)

    def update(self, update: Update) -> tuple[float, ...]:
        numbers = self._numbers
        rate = np.float32(numbers.learning_rate if update.learning_rate is None else update.learning_rate)
        decay = np.float32(numbers.weight_decay)
        for start in range(0, update.out.size, CHUNK_ELEMENTS):
            part = slice(start, start + CHUNK_ELEMENTS)
            weights, out = update.weights[part], update.out[part]
            step = self._scratch(0, out.size)
            summed = self._scratch(1, out.size)
            gradient = mean(update.gradient_part(part, summed), update.count, weights, decay, summed, step)
            np.multiply(gradient, rate, out=step)
            np.subtract(weights, step, out=out)
            canonicalise(out)
        return ()


class Momentum:
    """velocity = momentum * velocity + gradient; weights -= learning_rate * velocity. Nesterov's form steps along
    gradient + momentum * velocity. One slot: the velocity."""

    slots = 1
    scalars: tuple[float, ...] = ()

    def __init__(self, numbers: spec.Momentum) -> None:
        self._numbers = numbers
        self._scratch = Scratch(2)

    def update(self, update: Update) -> tuple[float, ...]:
        numbers = self._numbers
        rate = np.float32(numbers.learning_rate if update.learning_rate is None else update.learning_rate)
        momentum, decay = np.float32(numbers.momentum), np.float32(numbers.weight_decay)
        for start in range(0, update.out.size, CHUNK_ELEMENTS):
            part = slice(start, start + CHUNK_ELEMENTS)
            weights, out = update.weights[part], update.out[part]
            velocity = update.slots_out[0][part]
            step = self._scratch(0, out.size)
            summed = self._scratch(1, out.size)
            gradient = mean(update.gradient_part(part, summed), update.count, weights, decay, summed, step)
            np.multiply(update.slots[0][part], momentum, out=velocity)
            np.add(velocity, gradient, out=velocity)
            if numbers.nesterov:
                np.multiply(velocity, momentum, out=step)
                np.add(gradient, step, out=step)
                np.multiply(step, rate, out=step)
            else:
                np.multiply(velocity, rate, out=step)
            np.subtract(weights, step, out=out)
            canonicalise(out)
            canonicalise(velocity)
        return ()
