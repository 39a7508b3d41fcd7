"""scikit-learn's bundled handwritten digits: 1797 images of 8 x 8, ten classes. Real data, no download.

Owns the split into training and held-out images. Invariants: it is a function of nothing, so every rank, run and
machine holds out the same images; it depends on sha-256 only, not on the stream of a random generator that a NumPy
release may change. Must not know: servers, models.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from worker.data.dataset import Dataset, Images, IntArray, dataset
from worker.errors import InvalidArgument

NAME = "digits"
CLASSES = 10
SIDE = 8
HELD_OUT = 360
"""Images never trained on: about a fifth."""
PIXEL_MAX = 16


def load() -> Dataset:
    """Needs scikit-learn (the extra `demo`)."""
    values, labels = _bundled()
    pixels = values.astype(np.uint8).reshape(-1, SIDE, SIDE)
    order = split_order(len(labels))
    held_out, training = (Images(pixels[some], labels[some]) for some in (order[:HELD_OUT], order[HELD_OUT:]))
    return dataset(NAME, training, held_out, classes=CLASSES, pixel_max=PIXEL_MAX)


def installed() -> bool:
    return importlib.util.find_spec("sklearn") is not None


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
    return table[:, : SIDE * SIDE], table[:, SIDE * SIDE].astype(np.int64)


def split_order(count: int) -> IntArray:
    """A fixed permutation of range(count): by the sha-256 of each position."""
    keys = [hashlib.sha256(b"digits split %d" % position).digest() for position in range(count)]
    return np.asarray(sorted(range(count), key=keys.__getitem__), dtype=np.int64)
