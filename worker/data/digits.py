"""scikit-learn's bundled handwritten digits: 1797 images of 8 x 8, ten classes. Real data, no download.

Owns the split into training and held-out images, the order of batches and their augmentation. Invariants: the split is
a function of nothing, so every rank, run and machine holds out the same images; a batch is a function of (seed, step,
rank) alone, so a rank that crashed computes the step again with the same samples (RULES S7). Neither depends on the
stream of a random generator that a NumPy release may change: only on sha-256 and on raw Philox words, which are
specified. Must not know: servers, models.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from worker.errors import InvalidArgument

FEATURES = 64
CLASSES = 10
SIDE = 8
HELD_OUT = 360
"""Images never trained on: about a fifth."""
_PIXEL_MAX = 16.0
_BATCH_DOMAIN = 0x6469_6769_7473  # "digits": another use of the same seed draws other numbers

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Digits:
    """Images are float32 [n, 64] in [0, 1], labels int64 [n] in [0, 10)."""

    images: FloatArray
    labels: IntArray
    held_out_images: FloatArray
    held_out_labels: IntArray

    @property
    def size(self) -> int:
        return len(self.labels)

    def batch(self, seed: int, step: int, rank: int, size: int, *, shift: bool = True) -> tuple[FloatArray, IntArray]:
        """Images [size, 64] and labels [size] of `rank` at `step`, drawn with replacement. `shift`: two in five images
        (on average) move by one pixel, which is worth a percent of held-out accuracy."""
        words = _words(seed, step, rank, 2 * size)
        # 64 random bits on at most a few thousand samples: the bias of the remainder is below 2^-50.
        chosen = (words[:size] % np.uint64(self.size)).astype(np.int64)
        images = self.images[chosen]
        if shift:
            shifted(images, (words[size:] % np.uint64(10)).astype(np.int64))
        return images, self.labels[chosen]


def load() -> Digits:
    """Needs scikit-learn (the extra `demo`)."""
    pixels, labels = _bundled()
    images = (pixels / _PIXEL_MAX).astype(np.float32)
    order = split_order(len(labels))
    held_out, training = order[:HELD_OUT], order[HELD_OUT:]
    return Digits(images[training], labels[training], images[held_out], labels[held_out])


def _bundled() -> tuple[npt.NDArray[np.float64], IntArray]:
    """Pixels [1797, 64] from 0 to 16, labels [1797]."""
    found = importlib.util.find_spec("sklearn")
    if found is None or not found.submodule_search_locations:
        raise InvalidArgument("scikit-learn is not installed", "pip install 'paramserver[demo]'")
    file = Path(found.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    if file.exists():
        # Read where it lies: importing scikit-learn takes a second, which a restarted worker would cost the others.
        with gzip.open(file, "rt", encoding="ascii") as text:
            table = np.loadtxt(text, delimiter=",")
    else:
        from sklearn.datasets import load_digits

        bundled: Any = load_digits()
        table = np.column_stack([bundled.data, bundled.target])
    return table[:, :FEATURES], table[:, FEATURES].astype(np.int64)


def split_order(count: int) -> IntArray:
    """A fixed permutation of range(count): by the sha-256 of each position."""
    keys = [hashlib.sha256(b"digits split %d" % position).digest() for position in range(count)]
    return np.asarray(sorted(range(count), key=keys.__getitem__), dtype=np.int64)


def shifted(images: FloatArray, ways: IntArray) -> None:
    """Move image i [64] by one pixel, in place: down, up, right or left for ways[i] of 0 to 3, not at all beyond."""
    square = images.reshape(-1, SIDE, SIDE)
    for way, (down, right) in enumerate(((1, 0), (-1, 0), (0, 1), (0, -1))):
        moving = np.flatnonzero(ways == way)
        moved = np.zeros((len(moving), SIDE, SIDE), dtype=images.dtype)
        moved[:, _to(down), _to(right)] = square[moving][:, _to(-down), _to(-right)]
        square[moving] = moved


def _to(offset: int) -> slice:
    return slice(max(offset, 0), SIDE + min(offset, 0))


def _words(seed: int, step: int, rank: int, count: int) -> npt.NDArray[np.uint64]:
    """`count` random words: a function of the arguments."""
    key = np.array([seed & _WORD, _BATCH_DOMAIN], dtype=np.uint64)
    # The counter's low word counts blocks of output; step and rank take words of their own, so no two streams overlap.
    counter = np.array([0, step & _WORD, rank & _WORD, 0], dtype=np.uint64)
    return np.asarray(np.random.Philox(key=key, counter=counter).random_raw(count), dtype=np.uint64)


_WORD = (1 << 64) - 1
