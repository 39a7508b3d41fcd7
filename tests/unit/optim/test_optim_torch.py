"""Our optimizers do what PyTorch's do: within rtol 1e-5 of values that PyTorch 2.13.0 made (`torch_values.py`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paramserver.optim.factory import make
from paramserver.optim.interface import Update
from paramserver.wire.spec import OptimizerSpec, adam, momentum, sgd
from tests.unit.optim.torch_values import CASES, ELEMENTS, STEPS, inputs

VALUES = Path(__file__).with_name("torch_values.npz")


def ours(name: str) -> OptimizerSpec:
    numbers = {key: float(value) for key, value in CASES[name].items() if not isinstance(value, bool)}
    rate, decay = numbers["lr"], numbers.get("weight_decay", 0.0)
    if name.startswith("adam"):
        return adam(
            rate,
            beta1=numbers.get("beta1", 0.9),
            beta2=numbers.get("beta2", 0.999),
            epsilon=numbers.get("eps", 1e-8),
            weight_decay=decay,
        )
    if "momentum" in numbers:
        nesterov = bool(CASES[name].get("nesterov", False))
        return momentum(rate, numbers["momentum"], nesterov=nesterov, weight_decay=decay)
    return sgd(rate, weight_decay=decay)


def run(name: str, count: int) -> np.ndarray:
    """Weights after every step; the gradient comes as the sum over `count` equal contributions."""
    weights, gradients = inputs()
    optimizer = make(ours(name))
    slots = tuple(np.zeros(ELEMENTS, np.float32) for _ in range(optimizer.slots))
    scalars, found = optimizer.scalars, []
    for gradient in gradients:
        out = np.empty(ELEMENTS, np.float32)
        scalars = optimizer.update(
            Update(
                weights=weights,
                gradient=gradient * np.float32(count),
                count=count,
                slots=slots,
                scalars=scalars,
                out=out,
                slots_out=slots,
            )
        )
        weights = out
        found.append(out)
    return np.stack(found)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_as_pytorch(name: str, count: int) -> None:
    with np.load(VALUES) as values:
        kept, expected = values["kept"], values[name]
    assert kept[-1] == STEPS - 1
    # A few weights pass close to zero after updates a thousand times as large: there float32 itself has no five digits.
    np.testing.assert_allclose(run(name, count)[kept], expected, rtol=1e-5, atol=1e-6)
