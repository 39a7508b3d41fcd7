"""Evaluation: figures from one table of counts, and nothing said where nothing can be."""

from __future__ import annotations

import numpy as np
import pytest

from worker.reference import evaluate as module
from worker.reference.evaluate import ClassFigures, evaluate, figures
from worker.reference.mlp import Mlp


def test_precision_and_recall_by_class() -> None:
    counts = np.array([[8, 2, 0, 0], [1, 9, 0, 0], [0, 0, 0, 0], [3, 1, 0, 0]])
    assert figures(counts) == (
        ClassFigures(0, 8 / 12, 8 / 10, 10, 12),
        ClassFigures(1, 9 / 12, 9 / 10, 10, 12),
        ClassFigures(2, None, None, 0, 0),  # never there, never taken for it
        ClassFigures(3, None, 0.0, 4, 0),  # there, but never recognised
    )


def test_loss_and_accuracy_over_all_images_however_they_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Mlp((6, 5, 3))
    weights = network.initial(1)
    random = np.random.default_rng(2)
    images, labels = random.normal(size=(50, 2, 3)).astype(np.float32), random.integers(0, 3, 50)
    whole = evaluate(network, weights, images, labels, classes=3)
    logits = network.logits(weights, images).astype(np.float64)
    expected = -(logits[np.arange(50), labels] - np.log(np.exp(logits).sum(axis=1))).mean()
    assert whole.loss == pytest.approx(expected, rel=1e-6)
    assert whole.accuracy == (logits.argmax(axis=1) == labels).mean()
    assert [one.images for one in whole.classes] == np.bincount(labels, minlength=3).tolist()
    monkeypatch.setattr(module, "IMAGES_AT_ONCE", 7)
    cut = evaluate(network, weights, images, labels, classes=3)
    assert (cut.accuracy, cut.classes) == (whole.accuracy, whole.classes)
    assert cut.loss == pytest.approx(whole.loss, rel=1e-6)
