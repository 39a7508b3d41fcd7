"""The networks ask their array namespace for nothing that one of NumPy and CuPy lacks or does another way."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from worker.reference.evaluate import evaluate
from worker.reference.mixed import Mixed
from worker.reference.network import NETWORKS, Network, build

BOTH = ("arange", "asarray", "ascontiguousarray", "exp", "isfinite", "log", "maximum", "ones", "zeros")
"""In both, with the same meaning (docs.cupy.dev, comparison table)."""
ONLY_CUPY = {"asnumpy": np.asarray}


def namespace() -> SimpleNamespace:
    given = {name: getattr(np, name) for name in BOTH}
    tricks = SimpleNamespace(as_strided=np.lib.stride_tricks.as_strided)
    return SimpleNamespace(**given, **ONLY_CUPY, lib=SimpleNamespace(stride_tricks=tricks))


@pytest.mark.parametrize("precision", ["fp32", "mixed"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_needs_no_more_than_both_libraries_have(name: str, precision: str) -> None:
    images = np.random.default_rng(1).random((5, 8, 8), np.float32)
    labels = np.arange(5)
    found = []
    for xp in (np, namespace()):
        network: Network = build(name, (8, 8), 10, (16,), xp)
        if precision == "mixed":
            network = Mixed(network, xp)
        weights = network.initial(1)
        loss, gradient = network.loss_and_gradient(weights, images, labels)
        evaluation = evaluate(network, weights, images, labels, classes=10, xp=xp)
        found.append((loss, gradient, evaluation))
    (loss, gradient, evaluation), (other_loss, other, other_evaluation) = found
    if precision == "fp32":
        assert loss == other_loss
        assert all(array.tobytes() == other[key].tobytes() for key, array in gradient.items())
        assert evaluation == other_evaluation
    else:  # products in float16 are the library's own
        assert loss == pytest.approx(other_loss, rel=0.01)
        assert {key: array.dtype for key, array in other.items()} == dict.fromkeys(gradient, np.dtype(np.float32))
        assert other_evaluation.loss == pytest.approx(evaluation.loss, rel=0.01)
