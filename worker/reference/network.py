"""What the training loop asks of a network, and networks by name.

Must not know: servers, data sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from worker.reference.cnn import Cnn
from worker.reference.layers import Array, Sink
from worker.reference.mlp import Mlp

NETWORKS = ("mlp", "cnn")


class Network(Protocol):
    """Weights and gradients go by tensor name; images are [n, height, width], labels [n] integers."""

    def shapes(self) -> dict[str, tuple[int, ...]]: ...

    def initial(self, seed: int) -> dict[str, npt.NDArray[np.float32]]:
        """Host arrays; a function of `seed`."""
        ...

    def loss_and_gradient(
        self,
        weights: Mapping[str, Array],
        images: Array,
        labels: Array,
        scale: float = 1.0,
        into: Sink | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        """The mean loss, unscaled, and the gradient of `scale` times it; `into` gets each tensor's, too, as soon as it
        is final."""
        ...

    def logits(self, weights: Mapping[str, Array], images: Array) -> Array:
        """[n, classes]"""
        ...


def build(name: str, image: tuple[int, int], classes: int, hidden: tuple[int, ...], xp: Any = np) -> Network:
    """`hidden`: units of the layers of an mlp. Raises ValueError for an unknown name or an image that is too small."""
    if name == "mlp":
        return Mlp((image[0] * image[1], *hidden, classes), xp)
    if name == "cnn":
        return Cnn(image, classes, xp)
    raise ValueError(f"expected one of {', '.join(NETWORKS)}, got {name!r}")
