"""The data set: a split that never changes, and batches that are a function of (seed, step, rank)."""

from __future__ import annotations

import hashlib

import numpy as np
from sklearn.datasets import load_digits

from worker.data import digits

SPLIT = "8c85f91c243f2bcf"
BATCH = "1fefe107eff242ef"


def test_the_split_is_fixed_and_disjoint() -> None:
    data = digits.load()
    assert data.images.shape == (1437, 64)
    assert data.held_out_images.shape == (360, 64)
    assert (data.images.min(), data.images.max()) == (0.0, 1.0)
    assert data.images.dtype == np.float32
    order = digits.split_order(1797)
    assert sorted(order) == list(range(1797))
    # Changing the split changes every accuracy that was ever reported.
    assert hashlib.sha256(order.astype("<i8").tobytes()).hexdigest()[:16] == SPLIT
    assert np.bincount(data.held_out_labels).min() >= 25


def test_a_batch_is_a_function_of_seed_step_and_rank() -> None:
    data = digits.load()
    images, labels = data.batch(1, 7, 0, 64)
    assert images.shape == (64, 64)
    assert labels.shape == (64,)
    again, _ = digits.load().batch(1, 7, 0, 64)
    assert np.array_equal(images, again)
    for other in ((2, 7, 0), (1, 8, 0), (1, 7, 1)):
        assert not np.array_equal(images, data.batch(*other, 64)[0])
    assert hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()[:16] == BATCH


def test_drawing_a_batch_leaves_the_data_alone() -> None:
    data = digits.load()
    before = data.images.copy()
    for step in range(20):
        data.batch(1, step, 0, 64)
    assert np.array_equal(before, data.images)


def test_about_two_in_five_images_move_by_one_pixel() -> None:
    data = digits.load()
    plain = [data.batch(3, step, 0, 64, shift=False)[0] for step in range(20)]
    moved = [data.batch(3, step, 0, 64)[0] for step in range(20)]
    different = np.mean([np.any(a != b, axis=1).mean() for a, b in zip(plain, moved, strict=True)])
    assert 0.3 < different < 0.5


def test_shifts_by_one_pixel() -> None:
    image = np.zeros((5, 64), np.float32)
    image[:, 3 * 8 + 4] = 1
    digits.shifted(image, np.arange(5))
    places = [divmod(int(np.flatnonzero(one)[0]), 8) for one in image]
    assert places == [(4, 4), (2, 4), (3, 5), (3, 3), (3, 4)]
    edge = np.zeros((1, 64), np.float32)
    edge[0, 7 * 8] = 1
    digits.shifted(edge, np.array([0]))
    assert not edge.any()


def test_the_file_that_is_read_is_what_scikit_learn_gives() -> None:
    bundled = load_digits()
    pixels, labels = digits._bundled()
    assert np.array_equal(pixels, bundled.data)
    assert np.array_equal(labels, bundled.target)
