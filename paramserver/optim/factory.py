"""From an optimizer's numbers to the optimizer."""

from __future__ import annotations

from paramserver.optim.adam import Adam
from paramserver.optim.interface import Optimizer
from paramserver.optim.sgd import Momentum, Sgd
from paramserver.wire import spec


def make(numbers: spec.OptimizerSpec) -> Optimizer:
    match numbers:
        case spec.Sgd():
            return Sgd(numbers)
        case spec.Momentum():
            return Momentum(numbers)
        case spec.Adam():
            return Adam(numbers)
