"""The CNN: its shapes, its gradient against finite differences, and that it is a function of its arguments."""

from __future__ import annotations

import numpy as np
import pytest

from worker.reference.cnn import Cnn
from worker.reference.network import NETWORKS, build

SHAPES = {
    "conv0.weight": (3, 3, 1, 32),
    "conv0.bias": (32,),
    "conv1.weight": (3, 3, 32, 64),
    "conv1.bias": (64,),
    "conv2.weight": (3, 3, 64, 128),
    "conv2.bias": (128,),
    "dense0.weight": (128, 128),
    "dense0.bias": (128,),
    "dense1.weight": (128, 10),
    "dense1.bias": (10,),
}


@pytest.mark.parametrize(("side", "padding", "sizes"), [(28, "valid", [26, 11, 3]), (8, "same", [8, 4, 2])])
def test_both_image_sizes_have_the_same_tensors(side: int, padding: str, sizes: list[int]) -> None:
    network = Cnn((side, side), 10)
    assert network.padding == padding
    assert network.shapes() == SHAPES
    tape = network._convolve(network.initial(1), np.zeros((2, side, side), np.float32))
    assert [one.values.shape[1] for one in tape] == sizes
    assert [one.outputs.shape[1:] for one in tape][-1] == (1, 1, 128)


def test_images_that_are_too_small_are_refused() -> None:
    with pytest.raises(ValueError, match=r"7 x 9 are too small for 3 poolings with padding same; 8 x 8 is enough"):
        Cnn((7, 9), 10)
    with pytest.raises(ValueError, match="padding valid"):
        Cnn((21, 28), 10, padding="valid")
    assert Cnn((22, 22), 10, padding="valid").padding == "valid"


@pytest.mark.parametrize(("image", "padding"), [((8, 8), "same"), ((9, 11), "same"), ((22, 23), "valid")])
def test_the_gradient_of_every_weight_is_that_of_finite_differences(image: tuple[int, int], padding: str) -> None:
    """A small network of the same make, in float64."""
    network = Cnn(image, 3, filters=(2, 3, 2), units=4)
    assert network.padding == padding
    random = np.random.default_rng(12)  # with 11 one rectifier turns within the step
    weights = {name: random.normal(size=shape) for name, shape in network.shapes().items()}
    images, labels = random.normal(size=(3, *image)), np.array([0, 2, 1])
    _, gradient = network.loss_and_gradient(weights, images, labels)
    assert {name: array.shape for name, array in gradient.items()} == network.shapes()
    step = 1e-6
    for name, values in weights.items():
        for place in np.ndindex(values.shape):
            kept = values[place]
            values[place] = kept + step
            above = network.loss_and_gradient(weights, images, labels)[0]
            values[place] = kept - step
            below = network.loss_and_gradient(weights, images, labels)[0]
            values[place] = kept
            assert gradient[name][place] == pytest.approx((above - below) / (2 * step), rel=1e-4, abs=1e-7), name


@pytest.mark.parametrize("side", [8, 28])
def test_the_gradient_of_the_whole_network_along_each_tensor(side: int) -> None:
    """All filters: along a random direction within one tensor at a time, in float64."""
    network = Cnn((side, side), 10)
    random = np.random.default_rng(12)
    weights = {name: array.astype(np.float64) for name, array in network.initial(5).items()}
    images, labels = random.random((4, side, side)), np.array([3, 1, 9, 0])
    _, gradient = network.loss_and_gradient(weights, images, labels)
    step = 1e-7
    for name, values in weights.items():
        direction = random.normal(size=values.shape)
        above = network.loss_and_gradient({**weights, name: values + step * direction}, images, labels)[0]
        below = network.loss_and_gradient({**weights, name: values - step * direction}, images, labels)[0]
        assert (gradient[name] * direction).sum() == pytest.approx((above - below) / (2 * step), rel=1e-4), name


def test_everything_is_float32_and_the_same_each_time() -> None:
    network = Cnn((8, 8), 10)
    weights = network.initial(3)
    assert all(array.dtype == np.float32 for array in weights.values())
    assert all(np.array_equal(array, network.initial(3)[name]) for name, array in weights.items())
    assert not np.array_equal(weights["conv1.weight"], network.initial(4)["conv1.weight"])
    assert np.abs(weights["conv1.weight"]).max() == pytest.approx(np.sqrt(6 / 288), rel=1e-3)
    images = np.linspace(0, 1, 16 * 64, dtype=np.float32).reshape(16, 8, 8)
    labels = np.arange(16) % 10
    loss, gradient = network.loss_and_gradient(weights, images, labels)
    assert np.asarray(loss).dtype == np.float32
    assert all(array.dtype == np.float32 for array in gradient.values())
    again = network.loss_and_gradient(weights, images.copy(), labels)[1]
    assert all(array.tobytes() == again[name].tobytes() for name, array in gradient.items())


def test_its_loss_falls() -> None:
    """Plain steps on one batch, which a network of this size learns by heart."""
    network = Cnn((8, 8), 10)
    weights = network.initial(1)
    images = np.random.default_rng(7).random((20, 8, 8), np.float32)
    labels = np.arange(20) % 10
    losses = []
    for _ in range(150):
        loss, gradient = network.loss_and_gradient(weights, images, labels)
        weights = {name: array - np.float32(0.1) * gradient[name] for name, array in weights.items()}
        losses.append(float(loss))
    assert losses[0] > 1.5
    assert losses[-1] < 0.1
    assert network.logits(weights, images).argmax(axis=1).tolist() == labels.tolist()


def test_networks_by_name() -> None:
    assert [len(build(name, (8, 8), 10, (16,)).shapes()) for name in NETWORKS] == [4, 10]
    with pytest.raises(ValueError, match="expected one of mlp, cnn, got 'rnn'"):
        build("rnn", (8, 8), 10, ())
