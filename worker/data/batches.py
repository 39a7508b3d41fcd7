"""Which samples a rank computes at a step: an epoch goes once through all of them, in an order of its own.

All ranks walk through one order, rank after rank, batch after batch: the sample at a place depends on (seed, data
epoch, place) only, so a run with more ranks takes the same samples in fewer steps. Invariants: a batch is a function of
(data, seed, step, rank, ranks, size), so a rank that was restarted computes the very same one again (RULES S7). Must
not know: networks, servers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worker.data.augment import Augmentation
from worker.data.dataset import Dataset, FloatArray, IntArray
from worker.data.philox import words

_ORDER = 3
"""Domain of random words."""
_KEPT = 2
"""Orders kept: a batch may lie across the end of an epoch."""


@dataclass(frozen=True, slots=True)
class Batch:
    """images float32 [size, height, width], augmented and normalised; labels int64 [size]."""

    images: FloatArray
    labels: IntArray


class Batches:
    """Not for several threads at once."""

    def __init__(
        self, data: Dataset, *, seed: int, rank: int, ranks: int, size: int, augmentation: Augmentation
    ) -> None:
        self._data = data
        self._seed, self._rank, self._ranks, self._size = seed, rank, ranks, size
        self._augmentation = augmentation
        self._orders: dict[int, IntArray] = {}

    def make(self, step: int) -> Batch:
        epochs, samples = self.places(step)
        data = self._data
        images = data.scaled(data.training.pixels[samples])
        images = self._augmentation.apply(images, self._seed, epochs, samples)
        return Batch(data.normalised(images), data.training.labels[samples])

    def places(self, step: int) -> tuple[IntArray, IntArray]:
        """The data epoch and the sample of each row of the batch."""
        count = len(self._data.training)
        position = (step * self._ranks + self._rank) * self._size
        epochs, places = np.divmod(np.arange(position, position + self._size, dtype=np.int64), count)
        samples = np.empty(self._size, np.int64)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            here = epochs == epoch
            samples[here] = self._order(epoch)[places[here]]
        return epochs, samples

    def _order(self, epoch: int) -> IntArray:
        if epoch not in self._orders:
            while len(self._orders) >= _KEPT:
                del self._orders[min(self._orders)]
            samples = np.arange(len(self._data.training), dtype=np.int64)
            drawn = words(self._seed, _ORDER, np.full_like(samples, epoch), samples, 2).astype(np.uint64)
            # Sorted by 64 random bits, equals by number: a permutation, and the same one everywhere.
            self._orders[epoch] = np.argsort((drawn[:, 0] << np.uint64(32)) | drawn[:, 1], kind="stable")
        return self._orders[epoch]
