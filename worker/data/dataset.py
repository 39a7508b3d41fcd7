"""Labelled images in memory: those to train on, those held out, and how they are normalised.

Invariants: pixels are integers as they were stored; mean and deviation come from exact sums over the training images,
so they are the same on every machine. Must not know: files, networks, servers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from paramserver.wire.checksum import digest

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Images:
    """pixels uint8 [n, height, width], labels int64 [n]."""

    pixels: npt.NDArray[np.uint8]
    labels: IntArray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class BadRows:
    """Rows of `file` that were left out: how many, the first of them (from 0), and what is wrong with them."""

    file: str
    count: int
    first: tuple[int, ...]
    why: str

    def __str__(self) -> str:
        many = ", ..." if self.count > len(self.first) else ""
        return (
            f"{self.file}: {self.count} row{'s' * (self.count > 1)} {self.why}: {', '.join(map(str, self.first))}{many}"
        )


@dataclass(frozen=True, slots=True)
class Dataset:
    """Pixels go from 0 to `pixel_max`; labels from 0 to `classes` - 1. `mean` and `deviation` are of the training
    images with pixels from 0 to 1."""

    name: str
    training: Images
    held_out: Images
    classes: int
    pixel_max: int
    mean: np.float32
    deviation: np.float32
    bad_rows: tuple[BadRows, ...] = ()

    @property
    def image(self) -> tuple[int, int]:
        """(height, width)"""
        height, width = self.training.pixels.shape[1:]
        return height, width

    def scaled(self, pixels: npt.NDArray[np.uint8]) -> FloatArray:
        """float32 from 0 to 1."""
        return pixels.astype(np.float32) / np.float32(self.pixel_max)

    def normalised(self, scaled: FloatArray) -> FloatArray:
        """What a network gets: over the training images mean 0 and deviation 1."""
        return (scaled - self.mean) / self.deviation

    def held_out_images(self) -> FloatArray:
        """[n, height, width], normalised."""
        return self.normalised(self.scaled(self.held_out.pixels))

    def digest(self) -> str:
        """xxh3-128 over images, labels and shape: ranks with equal digests train on the same data."""
        shapes = (self.training.pixels.shape, self.held_out.pixels.shape, self.classes, self.pixel_max)
        parts: list[bytes | memoryview] = [str(shapes).encode()]
        for images in (self.training, self.held_out):
            parts += [np.ascontiguousarray(images.pixels).data.cast("B"), images.labels.astype("<i8").data.cast("B")]
        return digest(parts).hex()


def dataset(
    name: str,
    training: Images,
    held_out: Images,
    *,
    classes: int,
    pixel_max: int,
    bad_rows: tuple[BadRows, ...] = (),
) -> Dataset:
    """With the mean and deviation of `training`; where all pixels are equal the deviation is 1."""
    counts = np.zeros(256, np.int64)
    for row in range(0, len(training), _ROWS_AT_ONCE):
        counts += np.bincount(training.pixels[row : row + _ROWS_AT_ONCE].reshape(-1), minlength=256)
    number = int(counts.sum())
    first = sum(value * int(count) for value, count in enumerate(counts))
    second = sum(value * value * int(count) for value, count in enumerate(counts))
    mean = first / number
    deviation = ((number * second - first * first) / (number * number)) ** 0.5
    return Dataset(
        name,
        training,
        held_out,
        classes,
        pixel_max,
        np.float32(mean / pixel_max),
        np.float32(deviation / pixel_max if deviation else 1.0),
        bad_rows,
    )
