"""Named arrays over one flat buffer: what `pull` and `push_pull` give, and what gradients may be written into.

Invariant: the arrays are views of `flat`; nothing is copied between them. Must not know: servers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from paramserver.wire.checksum import digest
from paramserver.wire.layout import FLOAT, Flat, Layout

Array = npt.NDArray[np.float32]


class Tensors(dict[str, Any]):
    """name -> float32 array. `version`: how many updates the values have had (the lowest over all blocks)."""

    __slots__ = ("age_ms", "flat", "version", "versions")

    def __init__(self, layout: Layout, flat: Flat | None = None) -> None:
        self.flat: Flat = np.empty(layout.elements, FLOAT) if flat is None else flat
        super().__init__(layout.unflatten(self.flat))
        self.version = 0
        self.versions: tuple[int, ...] = ()
        """By block; all equal unless the pull was one of `min_version` or `consistency`."""
        self.age_ms = 0
        """Of a pull with `consistency`: when their replicas read them, the blocks held everything that had been
        acknowledged so many milliseconds before, or more."""

    def digest(self) -> str:
        """xxh3-128 of the values, in hexadecimal: equal digests are equal bits."""
        return digest([self.flat.data.cast("B")]).hex()
