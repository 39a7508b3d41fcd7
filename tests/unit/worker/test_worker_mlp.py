"""The MLP's gradient against finite differences, and what a device gives."""

from __future__ import annotations

import numpy as np
import pytest

from worker import device
from worker.errors import InvalidArgument
from worker.reference.mlp import Mlp


@pytest.mark.parametrize("sizes", [(3, 4), (5, 6, 3), (4, 7, 5, 3)])
def test_the_gradient_is_that_of_finite_differences(sizes: tuple[int, ...]) -> None:
    """Central differences in float64; the network runs in whatever its weights are."""
    network = Mlp(sizes)
    random = np.random.default_rng(5)
    images = random.normal(size=(6, sizes[0]))
    labels = random.integers(0, sizes[-1], 6)
    weights = {name: random.normal(size=shape) for name, shape in network.shapes().items()}
    _, gradient = network.loss_and_gradient(weights, images, labels)
    step = 1e-6
    for name, values in weights.items():
        for place in np.ndindex(values.shape):
            kept = values[place]
            values[place] = kept + step
            above = network.loss_and_gradient(weights, images, labels)[0]
            values[place] = kept - step
            below = network.loss_and_gradient(weights, images, labels)[0]
            values[place] = kept
            assert gradient[name][place] == pytest.approx((above - below) / (2 * step), rel=1e-4, abs=1e-6)


def test_everything_is_float32_and_the_same_each_time() -> None:
    network = Mlp((64, 16, 10))
    weights = network.initial(3)
    assert all(array.dtype == np.float32 for array in weights.values())
    assert all(np.array_equal(array, network.initial(3)[name]) for name, array in weights.items())
    assert not np.array_equal(weights["layer0.weight"], network.initial(4)["layer0.weight"])
    images = np.linspace(0, 1, 8 * 64, dtype=np.float32).reshape(8, 64)
    labels = np.arange(8) % 10
    loss, gradient = network.loss_and_gradient(weights, images, labels)
    assert np.asarray(loss).dtype == np.float32
    assert {name: array.shape for name, array in gradient.items()} == network.shapes()
    assert all(array.dtype == np.float32 for array in gradient.values())
    again = network.loss_and_gradient(weights, images, labels)[1]
    assert all(array.tobytes() == again[name].tobytes() for name, array in gradient.items())


def test_initial_weights_have_the_scale_of_their_layer() -> None:
    weights = Mlp((64, 128, 10)).initial(1)["layer0.weight"]
    assert np.abs(weights).max() <= np.sqrt(6 / 64)
    assert weights.std() == pytest.approx(np.sqrt(2 / 64), rel=0.05)
    assert weights.mean() == pytest.approx(0, abs=0.01)


def test_the_largest_logit_is_the_class() -> None:
    network = Mlp((2, 2))
    weights = {"layer0.weight": np.eye(2, dtype=np.float32), "layer0.bias": np.zeros(2, np.float32)}
    images = np.array([[1, 0], [0, 1], [0, 1], [1, 0]], np.float32)
    assert network.logits(weights, images.reshape(4, 2, 1)).argmax(axis=1).tolist() == [0, 1, 1, 0]


def test_huge_logits_do_not_overflow() -> None:
    network = Mlp((1, 2))
    weights = {"layer0.weight": np.array([[500.0, -500.0]], np.float32), "layer0.bias": np.zeros(2, np.float32)}
    loss, gradient = network.loss_and_gradient(weights, np.ones((1, 1), np.float32), np.array([1]))
    assert loss == pytest.approx(1000)
    assert np.isfinite(gradient["layer0.weight"]).all()


def test_auto_gives_some_device_and_numpy_gives_numpy() -> None:
    assert device.get("auto").name in ("numpy", "cupy")
    host = device.get("numpy")
    values = np.arange(6, dtype=np.float32)
    assert host.from_host(values) is values
    out = np.zeros(6, np.float32)
    assert host.to_host(values, out=out) is out
    assert np.array_equal(out, values)


def test_a_device_that_is_not_there_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidArgument, match="expected one of auto, numpy, cupy"):
        device.get("tpu")
    monkeypatch.setattr(device, "_cupy", lambda: (None, "no GPU"))
    with pytest.raises(InvalidArgument, match="device cupy: no GPU"):
        device.get("cupy")
    assert device.get("auto").name == "numpy"
