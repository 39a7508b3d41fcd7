"""What of a shard is bound to steps: the hold that stands, the learning rates, the pin (RULES S9, S11,
R4).

Owns the values and their arithmetic. Invariants: immutable; equal commands in equal order give equal values; of the
rates nothing is forgotten that a step still to come can need. Must not know: blocks, weights, who decides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

RATE_CHANGES_MAX = 256
"""Changes of the learning rate that lie ahead of a shard; one more is refused while it is only asked about."""


@dataclass(frozen=True, slots=True)
class Hold:
    """No update of `step` or a later one is applied until the change of that number is here."""

    number: int
    step: int


@dataclass(frozen=True, slots=True)
class RateFrom:
    """The learning rate, a float32, of the updates of `step` and those behind it."""

    step: int
    learning_rate: float


@dataclass(frozen=True, slots=True)
class Pin:
    """Version `step` of every block is kept until the pin ends (RULES R4)."""

    number: int
    step: int


@dataclass(frozen=True, slots=True)
class Steps:
    """`rate_number`: of the last change that was taken. `rates`: ascending, each step once. Pins up to number
    `pins_ended` are over."""

    hold: Hold | None = None
    rate_number: int = 0
    rates: tuple[RateFrom, ...] = ()
    pin: Pin | None = None
    pins_ended: int = 0

    def holds(self, step: int) -> bool:
        return self.hold is not None and step >= self.hold.step

    def rate_at(self, step: int) -> float | None:
        """None: the optimizer's own."""
        found = None
        for one in self.rates:
            if one.step > step:
                break
            found = one.learning_rate
        return found

    def with_rate(self, number: int, change: RateFrom, lowest_version: int) -> Steps:
        """The hold ends. A change of the same step takes the place of the one before; what no block can need any more,
        the lowest being at `lowest_version`, is dropped."""
        others = [one for one in self.rates if one.step != change.step]
        rates = sorted([*others, change], key=lambda one: one.step)
        begun = sum(one.step <= lowest_version for one in rates)
        return replace(self, hold=None, rate_number=number, rates=tuple(rates[max(begun - 1, 0) :]))

    @property
    def full(self) -> bool:
        return len(self.rates) > RATE_CHANGES_MAX


NO_STEPS = Steps()
