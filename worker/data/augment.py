"""Augmentation: images changed at random, a little, before a network sees them.

What happens to a sample is a function of (seed, data epoch, sample) alone: not of the rank that draws it, its place in
a batch, or what else is in it. Each kind has random words of its own, so turning one on leaves the others as they were.
Images are float32 from 0 to 1 and stay so; what comes in from outside an image is 0. Must not know: files, networks.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from worker.data.dataset import FloatArray, IntArray
from worker.data.philox import uniform, words

_PLACES, _NOISE = 1, 2
"""Domains of random words."""
_WORDS = 6
"""Flip, angle, down, across, brightness, contrast: fixed places among the words of a sample."""


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Each is off at 0. They are applied in this order."""

    flip: float = 0.0
    """Share of images that are mirrored, left to right. For things that have no left and right: not for digits."""
    rotate: float = 0.0
    """Degrees, at most, either way, about the middle; values between pixels are interpolated."""
    crop: int = 0
    """Pixels of border added on each side, from which a window of the old size is cut: a shift of so many at most."""
    contrast: float = 0.0
    """Distances from the image's mean are multiplied by 1 - contrast to 1 + contrast."""
    brightness: float = 0.0
    """Added to all pixels of an image, at most, either way."""
    noise: float = 0.0
    """Standard deviation of what is added to each pixel: a sum of four uniform numbers, which is nearly normal."""

    def validate(self) -> list[str]:
        """All problems at once."""
        limits = {"flip": 1, "rotate": 180, "crop": 64, "contrast": 1, "brightness": 1, "noise": 1}
        return [
            f"{name} {getattr(self, name):g}: expected 0 to {limit}"
            for name, limit in limits.items()
            if not 0 <= getattr(self, name) <= limit
        ]

    def __str__(self) -> str:
        on = [f"{one.name}:{getattr(self, one.name):g}" for one in fields(self) if getattr(self, one.name)]
        return ",".join(on) or "none"

    def apply(self, images: FloatArray, seed: int, epochs: IntArray, samples: IntArray) -> FloatArray:
        """images [n, height, width], the data epoch and the number of each. The argument is not changed."""
        if self == Augmentation():
            return images
        drawn = words(seed, _PLACES, epochs, samples, _WORDS)
        chance = uniform(drawn)
        signed = (2.0 * chance - 1.0).astype(np.float32)
        if self.flip:
            images = np.where((chance[:, 0] < self.flip)[:, None, None], images[:, :, ::-1], images)
        if self.rotate:
            images = rotated(images, signed[:, 1] * np.float32(np.deg2rad(self.rotate)))
        if self.crop:
            ways = (drawn[:, 2:4] % np.uint32(2 * self.crop + 1)).astype(np.int64) - self.crop
            images = shifted(images, ways[:, 0], ways[:, 1])
        if self.contrast:
            mean = images.mean(axis=(1, 2), keepdims=True)
            images = mean + (images - mean) * (1 + signed[:, 5] * np.float32(self.contrast))[:, None, None]
        if self.brightness:
            images = images + (signed[:, 4] * np.float32(self.brightness))[:, None, None]
        if self.noise:
            images = images + np.float32(self.noise) * _normal(images.shape, seed, epochs, samples)
        if self.contrast or self.brightness or self.noise:
            images = np.clip(images, 0.0, 1.0)
        return images


USUAL = Augmentation(crop=1)


def parse_augmentation(text: str) -> Augmentation:
    """ "none", or "rotate:10,crop:2,noise:0.05". Raises ValueError."""
    if text == "none":
        return Augmentation()
    known = {one.name: one.type for one in fields(Augmentation)}
    given: dict[str, float] = {}
    for part in text.split(","):
        name, _, amount = part.strip().partition(":")
        if name not in known:
            raise ValueError(f"expected none, or some of {', '.join(known)} with an amount each, such as rotate:10")
        if name in given:
            raise ValueError(f"{name} stands there twice")
        try:
            given[name] = int(amount) if name == "crop" else float(amount)
        except ValueError:
            what = "a whole number of pixels, such as crop:1" if name == "crop" else f"a number, such as {name}:0.1"
            raise ValueError(f"{name} needs {what}") from None
    made = Augmentation(**given)  # type: ignore[arg-type]
    if problems := made.validate():
        raise ValueError("; ".join(problems))
    return made


def shifted(images: FloatArray, down: IntArray, across: IntArray) -> FloatArray:
    """Image i moved by down[i] and across[i] pixels."""
    count, height, width = images.shape
    border = int(max(np.abs(down).max(initial=0), np.abs(across).max(initial=0)))
    framed = np.pad(images, ((0, 0), (border, border), (border, border)))
    rows = np.arange(height) + (border - down)[:, None]
    columns = np.arange(width) + (border - across)[:, None]
    return framed[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


def rotated(images: FloatArray, angles: npt.NDArray[np.float32]) -> FloatArray:
    """Image i turned counter-clockwise by angles[i] (radians) about its middle, bilinear."""
    count, height, width = images.shape
    cosine, sine = np.cos(angles)[:, None, None], np.sin(angles)[:, None, None]
    down = (np.arange(height, dtype=np.float32) - np.float32((height - 1) / 2))[None, :, None]
    across = (np.arange(width, dtype=np.float32) - np.float32((width - 1) / 2))[None, None, :]
    # Where each pixel comes from, in an image with a frame of zeros; everything further out comes from the frame.
    rows = np.clip(cosine * down + sine * across + np.float32((height - 1) / 2), -1, height) + 1
    columns = np.clip(cosine * across - sine * down + np.float32((width - 1) / 2), -1, width) + 1
    framed = np.pad(images, ((0, 0), (1, 2), (1, 2)))
    top, left = rows.astype(np.int64), columns.astype(np.int64)
    below, beside = (rows - top).astype(np.float32), (columns - left).astype(np.float32)
    image = np.arange(count)[:, None, None]
    upper = framed[image, top, left] * (1 - beside) + framed[image, top, left + 1] * beside
    lower = framed[image, top + 1, left] * (1 - beside) + framed[image, top + 1, left + 1] * beside
    return upper * (1 - below) + lower * below


def _normal(shape: tuple[int, ...], seed: int, epochs: IntArray, samples: IntArray) -> FloatArray:
    """Four 16-bit numbers each, summed: mean 0, deviation 1, never beyond 3.5."""
    pixels = shape[1] * shape[2]
    halves = words(seed, _NOISE, epochs, samples, 2 * pixels).copy().view(np.uint16)
    sums = halves.reshape(len(samples), pixels, 4).sum(axis=2, dtype=np.int64)
    centred = (sums - 2 * 0xFFFF).astype(np.float32)
    return (centred / np.float32(((2.0**32 - 1) / 3) ** 0.5)).reshape(shape)
