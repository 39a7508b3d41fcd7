"""How good weights are on images that were never trained on: loss, accuracy, and precision and recall by class.

Invariants: all figures come from one pass and one table of counts; what cannot be said is None, never a number. Must
not know: servers, where images come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from worker.reference.layers import Array, cross_entropy
from worker.reference.network import Network

IMAGES_AT_ONCE = 256
"""A bound on memory: windows of a convolution take nine times their input."""


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """`precision`: share of the images taken for this class that are of it; None when none was taken for it.
    `recall`: share of the images of this class that were taken for it; None when there are none."""

    label: int
    precision: float | None
    recall: float | None
    images: int
    taken: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`loss`: mean cross-entropy. `accuracy`: share of images whose most likely class is theirs."""

    loss: float
    accuracy: float
    classes: tuple[ClassFigures, ...]


def evaluate(
    network: Network,
    weights: Mapping[str, Array],
    images: Array,
    labels: npt.NDArray[np.int64],
    *,
    classes: int,
    xp: Any = np,
) -> Evaluation:
    """images [n, height, width] and weights on the device of `xp`, labels [n] on the host; n at least 1."""
    loss = 0.0
    counts = np.zeros((classes, classes), np.int64)
    for first in range(0, len(labels), IMAGES_AT_ONCE):
        some = labels[first : first + IMAGES_AT_ONCE]
        logits = network.logits(weights, images[first : first + IMAGES_AT_ONCE])
        losses, _ = cross_entropy(xp, logits, xp.asarray(some))
        loss += float(losses.sum(dtype=np.float64))
        taken = logits.argmax(axis=1)
        host = np.asarray(taken if xp is np else xp.asnumpy(taken), dtype=np.int64)
        counts += np.bincount(some * classes + host, minlength=classes * classes).reshape(classes, classes)
    return Evaluation(loss / len(labels), float(np.trace(counts)) / len(labels), figures(counts))


def figures(counts: npt.NDArray[np.int64]) -> tuple[ClassFigures, ...]:
    """counts [classes, classes]: images by their class (rows) and the class they were taken for (columns)."""
    found = []
    for label in range(len(counts)):
        right, images, taken = (int(n) for n in (counts[label, label], counts[label].sum(), counts[:, label].sum()))
        precision = right / taken if taken else None
        recall = right / images if images else None
        found.append(ClassFigures(label, precision, recall, images, taken))
    return tuple(found)
