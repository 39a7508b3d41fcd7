"""Makes `torch_values.npz`: what PyTorch's own optimizers do with fixed inputs.

Run with PyTorch 2.13.0 installed (`pip install torch==2.13.0 numpy`), from anywhere:

    python tests/unit/optim/torch_values.py

The tests only read the file; PyTorch is no dependency of them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

STEPS = 30
ELEMENTS = 257
CASES: dict[str, dict[str, float | bool]] = {
    "sgd": {"lr": 0.1},
    "sgd_decay": {"lr": 0.05, "weight_decay": 0.01},
    "momentum": {"lr": 0.05, "momentum": 0.9},
    "momentum_decay": {"lr": 0.02, "momentum": 0.8, "weight_decay": 0.001},
    "nesterov": {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "adam": {"lr": 0.001},
    "adam_betas": {"lr": 0.01, "beta1": 0.8, "beta2": 0.95, "eps": 1e-6},
    "adam_decay": {"lr": 0.003, "weight_decay": 0.1},
}


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """Weights (ELEMENTS,) and gradients (STEPS, ELEMENTS), float32."""
    random = np.random.default_rng(2026)
    weights = random.standard_normal(ELEMENTS, dtype=np.float32)
    scales = np.float32(10.0) ** random.integers(-4, 3, ELEMENTS).astype(np.float32)
    return weights, random.standard_normal((STEPS, ELEMENTS), dtype=np.float32) * scales


def run(name: str, weights: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """Weights after every step, (STEPS, ELEMENTS)."""
    import torch

    numbers = dict(CASES[name])
    parameter = torch.nn.Parameter(torch.from_numpy(weights.copy()))
    make: Callable[..., torch.optim.Optimizer] = torch.optim.SGD
    if name.startswith("adam"):
        make = torch.optim.Adam
        betas = (numbers.pop("beta1", 0.9), numbers.pop("beta2", 0.999))
        numbers = {**numbers, "betas": betas}  # type: ignore[dict-item]
    optimizer = make([parameter], **numbers)
    found = []
    for gradient in gradients:
        parameter.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
        found.append(parameter.detach().numpy().copy())
    return np.stack(found)


def main() -> None:
    weights, gradients = inputs()
    kept = (0, 1, 9, STEPS - 1)
    values = {name: run(name, weights, gradients)[list(kept)] for name in CASES}
    path = Path(__file__).with_suffix(".npz")
    np.savez_compressed(path, kept=np.array(kept), **values)


if __name__ == "__main__":
    main()
