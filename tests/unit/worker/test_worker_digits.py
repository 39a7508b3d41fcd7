"""The bundled digits: a split that never changes, and pixels as they are stored."""

from __future__ import annotations

import hashlib

import numpy as np

from worker.data import digits

SPLIT = "8c85f91c243f2bcf"


def test_the_split_is_fixed_and_disjoint() -> None:
    data = digits.load()
    assert data.training.pixels.shape == (1437, 8, 8)
    assert data.held_out.pixels.shape == (360, 8, 8)
    assert (data.training.pixels.min(), data.training.pixels.max()) == (0, 16)
    order = digits.split_order(1797)
    assert sorted(order) == list(range(1797))
    # Changing the split changes every accuracy that was ever reported.
    assert hashlib.sha256(order.astype("<i8").tobytes()).hexdigest()[:16] == SPLIT
    assert np.bincount(data.held_out.labels).min() >= 25


def test_a_network_gets_images_of_mean_0_and_deviation_1() -> None:
    data = digits.load()
    images = data.normalised(data.scaled(data.training.pixels))
    assert images.dtype == np.float32
    assert abs(float(images.mean(dtype=np.float64))) < 1e-6
    assert abs(float(images.std(dtype=np.float64)) - 1) < 1e-6
    assert data.scaled(data.training.pixels).max() == 1.0
    assert data.held_out_images().shape == (360, 8, 8)
    assert data.digest() == digits.load().digest()


def test_the_file_that_is_read_is_what_scikit_learn_gives() -> None:
    # Here: it takes two seconds, which each process that collects the tests would pay.
    from sklearn.datasets import load_digits

    bundled = load_digits()
    pixels, labels = digits._bundled()
    assert np.array_equal(pixels, bundled.data)
    assert np.array_equal(labels, bundled.target)
