"""Mixed precision: float16 inside, float32 outside, and a scale that nobody has to remember."""

from __future__ import annotations

import numpy as np
import pytest

from worker.data import digits
from worker.data.augment import USUAL
from worker.data.batches import Batches
from worker.reference.cnn import Cnn
from worker.reference.mixed import SCALES, Mixed
from worker.reference.mlp import Mlp
from worker.reference.network import Network


@pytest.mark.parametrize("network", [Cnn((8, 8), 10), Mlp((64, 32, 10))], ids=["cnn", "mlp"])
def test_its_gradient_is_near_that_of_float32_and_the_same_each_time(network: Network) -> None:
    weights = network.initial(1)
    batch = Batches(digits.load(), seed=1, rank=0, ranks=1, size=32, augmentation=USUAL).make(0)
    loss, gradient = network.loss_and_gradient(weights, batch.images, batch.labels)
    mixed = Mixed(network)
    half_loss, half = mixed.loss_and_gradient(weights, batch.images, batch.labels)
    assert half_loss == pytest.approx(loss, rel=1e-2)
    for name, array in gradient.items():
        assert half[name].dtype == np.float32
        assert np.linalg.norm(half[name] - array) < 0.02 * np.linalg.norm(array), name
    again = mixed.loss_and_gradient(weights, batch.images.copy(), batch.labels)[1]
    assert all(array.tobytes() == again[name].tobytes() for name, array in half.items())
    assert mixed.logits(weights, batch.images).dtype == np.float32
    assert mixed.shapes() == network.shapes()


class Recorded:
    """A network whose scaled gradient is a given number times the scale, in float16."""

    def __init__(self, value: float) -> None:
        self.value = value
        self.scales: list[float] = []

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"w": (1,)}

    def initial(self, seed: int) -> dict[str, np.ndarray]:
        return {"w": np.zeros(1, np.float32)}

    def loss_and_gradient(self, weights, images, labels, scale=1.0):  # type: ignore[no-untyped-def]
        assert weights["w"].dtype == images.dtype == np.float16
        self.scales.append(scale)
        with np.errstate(over="ignore"):
            return np.float32(1), {"w": np.array([self.value * scale]).astype(np.float16)}

    def logits(self, weights, images):  # type: ignore[no-untyped-def]
        return images


@pytest.mark.parametrize(("value", "tried"), [(3.0, 1), (40.0, 2), (1000.0, 3), (60000.0, 5), (2.0**-24, 1)])
def test_the_scale_falls_until_the_gradient_is_finite_and_leaves_no_trace(value: float, tried: int) -> None:
    inner = Recorded(value)
    mixed = Mixed(inner)
    for _ in range(2):  # the second step starts from the top again: nothing is remembered
        inner.scales.clear()
        _, gradient = mixed.loss_and_gradient(mixed.initial(1), np.zeros((1, 1), np.float32), np.zeros(1, np.int64))
        assert inner.scales == list(SCALES[:tried])
        assert gradient["w"].tolist() == [value]


def test_a_gradient_too_large_for_any_scale_is_given_as_it_is() -> None:
    """What becomes of it is the model's policy: `skip` for a model that is trained so (RULES S10)."""
    inner = Recorded(1e5)
    _, gradient = Mixed(inner).loss_and_gradient({"w": np.zeros(1, np.float32)}, np.zeros((1, 1), np.float32), None)
    assert inner.scales == list(SCALES)
    assert gradient["w"].tolist() == [np.inf]


def test_small_gradients_survive_by_the_scale() -> None:
    """Without it they would vanish below 2^-25."""
    inner = Recorded(2.0**-30)
    _, gradient = Mixed(inner).loss_and_gradient({"w": np.zeros(1, np.float32)}, np.zeros((1, 1), np.float32), None)
    assert gradient["w"].tolist() == [2.0**-30]
    assert np.float16(2.0**-30) == 0
