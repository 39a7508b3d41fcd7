"""Named arrays over one flat buffer: what `pull` and `push_pull` give, and what gradients may be written into.

Invariant: the arrays are views of `flat`; nothing is copied between them. Must not know: servers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from paramserver.wire.checksum import digest
from paramserver.wire.codecs import Encoded, Values, floats
from paramserver.wire.layout import FLOAT, Flat, Layout

Array = npt.NDArray[np.float32]


class Tensors(dict[str, Array]):
    """name -> float32 array of the tensor's shape, in the model's order; of all its tensors, or of those that were
    asked for. `version`: how many updates the values have had (the lowest over all blocks)."""

    __slots__ = ("age_ms", "flat", "version", "versions", "whole")

    def __init__(self, layout: Layout, flat: Flat | None = None, names: Sequence[str] | None = None) -> None:
        self.flat: Flat = np.empty(layout.elements, FLOAT) if flat is None else flat
        """(elements of the whole model,); of a part only what `names` lie in is filled."""
        views = layout.unflatten(self.flat)
        super().__init__(views if names is None else {name: views[name] for name in names})
        self.whole = names is None
        """It has every tensor of the model."""
        self.version = 0
        self.versions: tuple[int, ...] = ()
        """By block that was asked for; all equal unless the pull was one of `min_version` or `consistency`."""
        self.age_ms = 0
        """Of a pull with `consistency`: when their replicas read them, the blocks held everything that had been
        acknowledged so many milliseconds before, or more."""

    def digest(self) -> str:
        """xxh3-128 of the values, in hexadecimal: equal digests are equal bits."""
        if self.whole:
            return digest([self.flat.data.cast("B")]).hex()
        return digest([array.reshape(-1).data.cast("B") for array in self.values()]).hex()


class Landing(Tensors):
    """Where weights are put as they come, for who decodes them elsewhere: `flat` may be encoded, and then there are no
    arrays."""

    __slots__ = ()

    def __init__(self, layout: Layout, values: Values) -> None:
        if isinstance(values, Encoded):
            super().__init__(layout, np.empty(layout.elements, FLOAT), names=())
            self.flat = values  # type: ignore[assignment]
            self.whole = True
        else:
            super().__init__(layout, values)

    def digest(self) -> str:
        return digest([floats(self.flat).data.cast("B")]).hex()


@dataclass(frozen=True, slots=True)
class Pushed:
    """What became of a push. `version`: that every block has now, `step` + 1 or later. `duplicate`: every block had
    been applied before this push came, so it changed nothing; `duplicates`: how many had (some, where an earlier life
    of this rank, or a broken stream, had brought a part)."""

    step: int
    version: int
    duplicates: int
    duplicate: bool
