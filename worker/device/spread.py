"""Weights from host memory into arrays of the caller's on a device: one copy, and one kernel for all tensors.

Invariant: what the caller's stream was given before `begin` is done before an array is written, and all are written
when `fill` returns. Must not know: servers, CuPy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paramserver.wire.layout import FLOAT, Flat, Layout
from worker.device.backend import Array, Backend
from worker.device.incoming import PIECE_ELEMENTS


class Spread:
    """Of one handle and device."""

    def __init__(self, layout: Layout, backend: Backend) -> None:
        self._backend = backend
        self._elements = layout.elements
        self._flat = backend.zeros(layout.elements, FLOAT)
        self._host = backend.pinned(layout.elements, FLOAT)
        self._group = backend.group([layout.tensor_slice(at) for at in range(len(layout.spec.tensors))])

    def begin(self) -> None:
        """On the thread whose stream used the arrays last."""
        self._backend.after(self._backend.caller())

    def fill(self, weights: Flat, arrays: Sequence[Array]) -> None:
        """All tensors of the model, in its order; contiguous, float32 or float64. Any thread, one at a time. Raises
        DeviceFailed."""
        for start in range(0, self._elements, PIECE_ELEMENTS):
            stop = min(start + PIECE_ELEMENTS, self._elements)
            np.copyto(self._host[start:stop], weights[start:stop])  # while the piece before is on its way
            self._backend.upload(self._host, self._flat, start, stop)
        self._group.scatter(self._flat, arrays)
        self._backend.wait()
