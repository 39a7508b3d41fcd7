"""A scale of the loss that follows the gradients, for training in float16.

    loss * scale.value -> gradients -> divided by it again -> one of them is not finite: skip the step, halve the scale

Policy: every rank pushes something in every step (RULES S6), so a step is never dropped by one rank alone. A rank whose
gradient is not finite pushes that as a skip, the model (NonFinite.SKIP) then leaves its weights as they are for all
ranks together (S10), and the step counts. Each rank has a scale of its own: gradients are divided by it before they are
sent. All values are powers of two, so that a scale leaves no trace in the bits where nothing overflows or vanishes. The
scale is not part of the model: a rank that starts again seeks it anew. Must not know: devices, servers.
"""

from __future__ import annotations

import math

from worker.errors import InvalidArgument


class LossScale:
    """`value`: what the loss is to be multiplied by now. It doubles after `grow_after` steps that were finite, and
    halves after one that was not, between `least` and `most`; all three are powers of two. Raises InvalidArgument."""

    def __init__(
        self, value: float = 2.0**15, *, grow_after: int = 2000, least: float = 1.0, most: float = 2.0**24
    ) -> None:
        for field, one in (("value", value), ("least", least), ("most", most)):
            if not (isinstance(one, int | float) and math.isfinite(one) and one > 0 and math.frexp(one)[0] == 0.5):
                raise InvalidArgument(f"{field} {one!r}", "expected a power of two")
        if not least <= value <= most:
            raise InvalidArgument(f"value {value:g}", f"expected {least:g} to {most:g}")
        if grow_after < 1:
            raise InvalidArgument(f"grow_after {grow_after}", "expected at least 1")
        self.value = float(value)
        self._grow_after = grow_after
        self._least = float(least)
        self._most = float(most)
        self._finite = 0

    def update(self, skipped: bool) -> None:
        """A step was pushed; `skipped`: its gradient was not finite. A `Link` calls it. Raises nothing."""
        if skipped:
            self.value = max(self._least, self.value / 2)
            self._finite = 0
            return
        self._finite += 1
        if self._finite >= self._grow_after:
            self.value = min(self._most, self.value * 2)
            self._finite = 0
