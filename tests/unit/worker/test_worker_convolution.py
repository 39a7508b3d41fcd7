"""Convolution, pooling, dense layers and the loss against plain loops and finite differences, in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from worker.reference.convolution import overlapped, pooled, unpooled, windows
from worker.reference.layers import cross_entropy, dense, mean_cross_entropy, product, rectified, total

Float = npt.NDArray[np.float64]


def plain_convolution(images: Float, weight: Float, margin: int) -> Float:
    """As the definition says: a loop over every output and every weight."""
    count, height, width, channels = images.shape
    side, filters = weight.shape[0], weight.shape[-1]
    result = np.zeros((count, height + 2 * margin - side + 1, width + 2 * margin - side + 1, filters))
    for image, row, column, made in np.ndindex(*result.shape):
        for top, left, channel in np.ndindex(side, side, channels):
            y, x = row + top - margin, column + left - margin
            if 0 <= y < height and 0 <= x < width:
                result[image, row, column, made] += images[image, y, x, channel] * weight[top, left, channel, made]
    return result


def differences(function: Callable[[], float], values: Float, step: float = 1e-6) -> Float:
    """Central differences of `function` by each of `values`, which it reads."""
    result = np.empty_like(values)
    for place in np.ndindex(values.shape):
        kept = values[place]
        values[place] = kept + step
        above = function()
        values[place] = kept - step
        below = function()
        values[place] = kept
        result[place] = (above - below) / (2 * step)
    return result


@pytest.mark.parametrize("margin", [0, 1])
@pytest.mark.parametrize("shape", [(2, 5, 4, 1), (1, 4, 6, 3)])
def test_windows_times_weights_is_a_convolution(shape: tuple[int, int, int, int], margin: int) -> None:
    random = np.random.default_rng(1)
    images, weight = random.normal(size=shape), random.normal(size=(3, 3, shape[3], 2))
    expected = plain_convolution(images, weight, margin)
    rows = windows(np, images, 3, margin)
    assert rows.shape == (expected[..., 0].size, 9 * shape[3])
    np.testing.assert_allclose((rows @ weight.reshape(-1, 2)).reshape(expected.shape), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("margin", [0, 1])
def test_the_gradient_of_a_convolution_by_its_input_is_that_of_finite_differences(margin: int) -> None:
    random = np.random.default_rng(2)
    images, weight = random.normal(size=(2, 5, 4, 2)), random.normal(size=(18, 3))
    upstream = random.normal(size=(len(windows(np, images, 3, margin)), 3))
    by_images = overlapped(np, upstream @ weight.T, images.shape, 3, margin)
    numeric = differences(lambda: float((windows(np, images, 3, margin) @ weight * upstream).sum()), images)
    np.testing.assert_allclose(by_images, numeric, rtol=1e-5, atol=1e-7)


def test_pools_take_the_largest_and_leave_out_an_odd_row() -> None:
    images = np.random.default_rng(3).normal(size=(2, 5, 7, 3))
    made = pooled(np, images)
    assert made.shape == (2, 2, 3, 3)
    for image, row, column, channel in np.ndindex(*made.shape):
        pool = images[image, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2, channel]
        assert made[image, row, column, channel] == pool.max()


def test_the_gradient_of_pools_is_that_of_finite_differences() -> None:
    random = np.random.default_rng(4)
    images = random.normal(size=(2, 5, 6, 2))
    upstream = random.normal(size=(2, 2, 3, 2))
    numeric = differences(lambda: float((pooled(np, images) * upstream).sum()), images)
    np.testing.assert_allclose(unpooled(np, upstream, images, pooled(np, images)), numeric, rtol=1e-5, atol=1e-8)


def test_of_equal_values_in_a_pool_the_first_gets_the_gradient() -> None:
    images = np.ones((1, 2, 2, 1))
    by_images = unpooled(np, np.full((1, 1, 1, 1), 5.0), images, pooled(np, images))
    assert by_images.ravel().tolist() == [5, 0, 0, 0]


def test_the_gradient_of_dense_layers_is_that_of_finite_differences() -> None:
    random = np.random.default_rng(5)
    inputs, weight, bias = random.normal(size=(4, 3)), random.normal(size=(3, 5)), random.normal(size=5)
    upstream = random.normal(size=(4, 5))

    def loss() -> float:
        return float((rectified(np, dense(np, inputs, weight, bias)) * upstream).sum())

    opened = upstream * (dense(np, inputs, weight, bias) > 0)
    np.testing.assert_allclose(product(np, inputs.T, opened), differences(loss, weight), rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(product(np, opened, weight.T), differences(loss, inputs), rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(total(opened), differences(loss, bias), rtol=1e-5, atol=1e-8)


def test_the_gradient_of_the_loss_is_that_of_finite_differences() -> None:
    random = np.random.default_rng(6)
    logits, labels = random.normal(size=(5, 4)), np.array([0, 3, 1, 3, 2])
    loss, gradient = mean_cross_entropy(np, logits, labels)
    expected = -np.log(np.exp(logits)[np.arange(5), labels] / np.exp(logits).sum(axis=1)).mean()
    assert loss == pytest.approx(expected)
    numeric = differences(lambda: float(mean_cross_entropy(np, logits, labels)[0]), logits)
    np.testing.assert_allclose(gradient, numeric, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(mean_cross_entropy(np, logits, labels, 8.0)[1], 8 * gradient, rtol=1e-14)


def test_in_float16_sums_are_float32_and_rounded_once() -> None:
    ones = np.ones((4096, 1), np.float16)
    half = product(np, ones.T, ones)
    assert (half.dtype, half[0, 0]) == (np.float16, 4096)  # a sum in float16 stops at 2048
    assert total(ones).tolist() == [4096]
    with np.errstate(over="ignore"):
        assert product(np, np.full((1, 2), 60000, np.float16), np.ones((2, 1), np.float16))[0, 0] == np.inf
    losses, _ = cross_entropy(np, np.zeros((3, 1000), np.float16), np.zeros(3, np.int64))
    assert losses.dtype == np.float32
    assert losses == pytest.approx(np.log(1000))
