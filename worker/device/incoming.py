"""Weights on their way from host memory to a device: copied as they came, decoded there.

Invariants: what a caller's kernels were given before `load` reads the old weights, what they are given afterwards the
new ones; host memory is filled again only when its copy is over (`idle`). Must not know: servers, CuPy.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from paramserver.wire.codecs import Codec, Encoded
from paramserver.wire.layout import FLOAT, Layout
from worker.device.backend import Array, Backend
from worker.tensors import Landing

PIECE_ELEMENTS = 1 << 20
"""Copied at once: while one piece is decoded the next one is on its way."""


class Incoming:
    """Of one handle and device; one thread at a time. `landing`: to be given to `pull` and `push_pull` as `out`.
    `weights`: name -> float32 array of the device, views of one flat array, the same ones for good."""

    def __init__(self, layout: Layout, codec: Codec, backend: Backend) -> None:
        self._codec = codec
        self._backend = backend
        self._elements = layout.elements
        self._flat = backend.zeros(layout.elements, FLOAT)
        plain = codec is Codec.FP32
        kind = FLOAT if plain else np.dtype("<u2")
        self._shorts = self._flat if plain else backend.zeros(layout.elements, kind)
        self._host = backend.pinned(layout.elements, kind)
        self._loading = False
        self.landing = Landing(layout, self._host if plain else Encoded(codec, self._host))
        self.weights: Mapping[str, Array] = {
            tensor.name: self._flat[layout.tensor_slice(position)].reshape(tensor.shape)
            for position, tensor in enumerate(layout.spec.tensors)
        }

    def idle(self) -> None:
        """`landing` may be filled. Raises DeviceFailed."""
        if self._loading:
            self._backend.wait()
            self._loading = False

    def load(self) -> Mapping[str, Array]:
        """Have `weights` be what is in `landing`; they are so for what the calling thread's stream is given from now
        on. Raises DeviceFailed."""
        backend, stream = self._backend, self._backend.caller()
        self._loading = True
        backend.after(stream)
        for start in range(0, self._elements, PIECE_ELEMENTS):
            stop = min(start + PIECE_ELEMENTS, self._elements)
            backend.upload(self._host, self._shorts, start, stop)
            if self._shorts is not self._flat:
                backend.decode(self._codec, self._shorts, self._flat, start, stop)
        backend.before(stream)
        return self.weights
