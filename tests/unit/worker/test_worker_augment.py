"""Augmentation and batches: a function of (seed, data epoch, sample), and of nothing else."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from worker.data import digits
from worker.data.augment import USUAL, Augmentation, parse_augmentation, rotated, shifted
from worker.data.batches import Batches
from worker.data.dataset import FloatArray, Images, dataset
from worker.data.philox import philox, uniform, words

ALL = Augmentation(flip=0.5, rotate=20, crop=2, contrast=0.3, brightness=0.2, noise=0.1)
ORDER = "f4910de5e95349f2"
BATCH = "ee01d6a5343e2abf"


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers_of_philox(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    """Those that come with the authors' library, Random123."""
    made = philox(np.array(counter, np.uint32).reshape(4, 1), key)
    assert tuple(int(word) for word in made[:, 0]) == expected


def test_a_word_is_a_function_of_its_place() -> None:
    epochs, samples = np.array([0, 0, 3, 1 << 33]), np.array([5, 6, 5, 5])
    many = words(7, 1, epochs, samples, 10)
    assert many.shape == (4, 10)
    assert len(set(many.reshape(-1).tolist())) == 40
    for row in range(4):
        assert np.array_equal(words(7, 1, epochs[row : row + 1], samples[row : row + 1], 3)[0], many[row, :3])
    for other in (
        words(8, 1, epochs, samples, 10),
        words(7, 2, epochs, samples, 10),
        words(7 + (1 << 32), 1, epochs, samples, 10),
    ):
        assert not np.any(other == many)
    assert abs(uniform(words(1, 1, np.zeros(4000, np.int64), np.arange(4000), 4)).mean() - 0.5) < 0.01


def some_images(count: int = 12, height: int = 9, width: int = 8) -> FloatArray:
    return np.random.default_rng(3).random((count, height, width), np.float32)


@pytest.mark.parametrize(
    "augmentation",
    [
        ALL,
        USUAL,
        *(Augmentation(**{name: 1}) for name in ("flip", "rotate", "crop", "contrast", "brightness", "noise")),
    ],
)
def test_what_happens_to_a_sample_does_not_depend_on_its_batch(augmentation: Augmentation) -> None:
    images = some_images()
    kept = images.copy()
    epochs, samples = np.arange(12) % 3, np.arange(12) * 7
    together = augmentation.apply(images, 5, epochs, samples)
    assert np.array_equal(images, kept)
    assert together.dtype == np.float32
    assert together.shape == images.shape
    assert 0 <= together.min() <= together.max() <= 1
    backwards = np.arange(11, -1, -1)
    turned = augmentation.apply(images[backwards], 5, epochs[backwards], samples[backwards])
    assert together[backwards].tobytes() == turned.tobytes()
    for row in range(12):
        alone = augmentation.apply(images[row : row + 1], 5, epochs[row : row + 1], samples[row : row + 1])
        assert alone.tobytes() == together[row : row + 1].tobytes()
    assert together.tobytes() != augmentation.apply(images, 6, epochs, samples).tobytes() or augmentation.flip == 1
    assert together.tobytes() != augmentation.apply(images, 5, epochs + 1, samples).tobytes() or augmentation.flip == 1


def test_shifts() -> None:
    image = np.zeros((3, 4, 5), np.float32)
    image[:, 1, 2] = 1
    moved = shifted(image, np.array([0, 1, -1]), np.array([0, -2, 1]))
    assert [divmod(int(np.flatnonzero(one)[0]), 5) for one in moved] == [(1, 2), (2, 0), (0, 3)]
    assert not shifted(image, np.array([3, 0, 0]), np.array([0, 3, -3])).any()


def test_turns() -> None:
    """Counter-clockwise, about the middle; a quarter turn of a square image is exact up to rounding."""
    images = some_images(4, 8, 8)
    quarter = np.float32(np.pi / 2)
    np.testing.assert_allclose(rotated(images, np.zeros(4, np.float32)), images, atol=1e-6)
    turned = rotated(images, np.array([quarter, -quarter, 2 * quarter, 0], np.float32))
    for row, quarters in enumerate((1, -1, 2, 0)):
        np.testing.assert_allclose(turned[row], np.rot90(images[row], quarters), atol=1e-5)
    eighth = rotated(np.ones((1, 8, 8), np.float32), np.array([np.pi / 4], np.float32))[0]
    assert eighth[0, 0] == 0
    assert eighth[4, 4] == pytest.approx(1)


def test_amounts_are_kept() -> None:
    images = np.full((2000, 4, 4), 0.5, np.float32)
    epochs, samples = np.zeros(2000, np.int64), np.arange(2000)
    brighter = Augmentation(brightness=0.2).apply(images, 1, epochs, samples)[:, 0, 0] - 0.5
    assert -0.2 <= brighter.min() < -0.19 < 0.19 < brighter.max() <= 0.2001
    noisy = Augmentation(noise=0.1).apply(images, 1, epochs, samples) - 0.5
    assert noisy.std() == pytest.approx(0.1, rel=0.02)
    assert abs(noisy.mean()) < 0.002
    halves = np.tile(np.array([0.4, 0.6], np.float32), (2000, 4, 2))
    spread = np.ptp(Augmentation(contrast=0.5).apply(halves, 1, epochs, samples), axis=(1, 2)) / 0.2
    assert 0.49 < spread.min() < 0.52 < 1.48 < spread.max() < 1.51
    mirrored = Augmentation(flip=0.25).apply(halves, 1, epochs, samples)[:, 0, 0] == halves[0, 0, 1]
    assert 0.2 < mirrored.mean() < 0.3


def test_augmentation_by_name() -> None:
    assert parse_augmentation("none") == Augmentation()
    assert parse_augmentation("rotate:10, crop:2,noise:0.05") == Augmentation(rotate=10, crop=2, noise=0.05)
    assert parse_augmentation(str(ALL)) == ALL
    assert (str(USUAL), str(Augmentation())) == ("crop:1", "none")
    for wrong, told in (
        ("rotat:10", "some of flip, rotate, crop"),
        ("crop:1.5", "whole number of pixels"),
        ("noise", "noise needs a number"),
        ("flip:2", "flip 2: expected 0 to 1"),
        ("noise:nan", "noise nan"),
        ("crop:1,crop:2", "crop stands there twice"),
        ("", "expected none"),
    ):
        with pytest.raises(ValueError, match=told):
            parse_augmentation(wrong)


def batches(
    rank: int = 0, ranks: int = 1, size: int = 64, seed: int = 1, augmentation: Augmentation = USUAL
) -> Batches:
    return Batches(digits.load(), seed=seed, rank=rank, ranks=ranks, size=size, augmentation=augmentation)


def test_an_epoch_takes_every_sample_once_in_an_order_of_its_own() -> None:
    made = batches(size=100)
    places = [made.places(step) for step in range(30)]
    epochs, samples = (np.concatenate(parts) for parts in zip(*places, strict=True))
    orders = [samples[epochs == epoch] for epoch in (0, 1)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(1437))
    assert not np.array_equal(*orders)
    # Another order, and every run would give other bits than the versions before.
    assert hashlib.sha256(orders[0].astype("<i8").tobytes()).hexdigest()[:16] == ORDER


def test_a_batch_is_a_function_of_seed_step_and_rank() -> None:
    one = batches(rank=1, ranks=2).make(30)
    assert (one.images.shape, one.labels.shape) == ((64, 8, 8), (64,))
    later = batches(rank=1, ranks=2)
    for step in range(25, 30):
        later.make(step)
    again = later.make(30)
    assert (one.images.tobytes(), one.labels.tobytes()) == (again.images.tobytes(), again.labels.tobytes())
    for other in (batches(rank=0, ranks=2).make(30), batches(rank=1, ranks=2, seed=2).make(30), later.make(31)):
        assert one.images.tobytes() != other.images.tobytes()
    assert hashlib.sha256(one.images.tobytes() + one.labels.astype("<i8").tobytes()).hexdigest()[:16] == BATCH


def test_more_ranks_take_the_same_samples_in_fewer_steps() -> None:
    """And augment them alike: what a sample becomes depends on its epoch, not on who takes it."""
    alone = batches(size=20, augmentation=ALL)
    both = [batches(rank=rank, ranks=2, size=20, augmentation=ALL) for rank in (0, 1)]
    for step in (0, 17, 36, 50):
        first, second = (alone.make(2 * step + rank).images for rank in (0, 1))
        assert first.tobytes() == both[0].make(step).images.tobytes()
        assert second.tobytes() == both[1].make(step).images.tobytes()


def test_a_batch_may_be_larger_than_the_data() -> None:
    few = Images(np.arange(4 * 64, dtype=np.uint8).reshape(4, 8, 8), np.arange(4))
    data = dataset("few", few, few, classes=4, pixel_max=255)
    made = Batches(data, seed=1, rank=0, ranks=1, size=10, augmentation=Augmentation())
    epochs, samples = made.places(0)
    assert epochs.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert sorted(samples[:4]) == sorted(samples[4:8]) == [0, 1, 2, 3]


def test_data_of_one_colour_is_not_divided_by_its_deviation() -> None:
    grey = Images(np.full((2, 8, 8), 51, np.uint8), np.arange(2))
    data = dataset("grey", grey, grey, classes=2, pixel_max=255)
    assert (data.mean, data.deviation) == (np.float32(0.2), 1.0)
    assert not data.held_out_images().any()
