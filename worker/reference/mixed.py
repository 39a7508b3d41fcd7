"""Mixed precision: a network computed in float16, from float32 weights to a float32 gradient.

The loss is scaled up so that small gradients do not vanish in float16, and the gradient scaled down again in float32.
The scale is sought anew in each step: from `SCALES[0]` down until no value is infinite. So nothing is remembered from
step to step, the gradient stays a function of (weights, batch), and a worker that was restarted computes the same bits
(RULES S7). All scales are powers of two: where nothing overflows or vanishes, the scale leaves no trace in the bits. A
gradient that is infinite with the smallest scale is given as it is: what becomes of it is the model's policy (S10).
Must not know: servers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from worker.reference.layers import Array, Gradients, Sink
from worker.reference.network import Network

SCALES = tuple(2.0**power for power in (12, 9, 6, 3, 0))


def _quiet() -> Any:
    """Values beyond float16 are looked for, so NumPy need not warn of them; a GPU never does."""
    return np.errstate(over="ignore", invalid="ignore")


class Mixed:
    """A `Network` around another."""

    def __init__(self, inner: Network, xp: Any = np) -> None:
        self._inner = inner
        self._xp = xp

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self._inner.shapes()

    def initial(self, seed: int) -> dict[str, npt.NDArray[np.float32]]:
        return self._inner.initial(seed)

    def loss_and_gradient(
        self,
        weights: Mapping[str, Array],
        images: Array,
        labels: Array,
        scale: float = 1.0,
        into: Sink | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        with _quiet():
            halves, images = self._halves(weights), images.astype(np.float16)
            for tried in SCALES:
                loss, scaled = self._inner.loss_and_gradient(halves, images, labels, tried)
                if self._finite(scaled):
                    break
        factor = scale / tried
        gradient = Gradients(into)
        for name, array in scaled.items():
            gradient[name] = array.astype(np.float32) * factor
        return loss, gradient

    def logits(self, weights: Mapping[str, Array], images: Array) -> Array:
        with _quiet():
            return self._inner.logits(self._halves(weights), images.astype(np.float16)).astype(np.float32)

    def _finite(self, gradient: Mapping[str, Array]) -> bool:
        """The host waits for the device once, however many tensors there are."""
        finite = self._xp.ones((), dtype=bool)
        for array in gradient.values():
            finite = finite & self._xp.isfinite(array).all()
        return bool(finite)

    @staticmethod
    def _halves(weights: Mapping[str, Array]) -> dict[str, Array]:
        return {name: array.astype(np.float16) for name, array in weights.items()}
