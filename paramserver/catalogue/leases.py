"""When leases of ranks, of initialization and of pins end (RULES I4).

Owns the clock of group 0's leader: a lease counts from the latest of its last renewal seen here, the moment it was
first seen here, and the start of this leadership; so a new leader gives everybody a whole lease. Invariants: it only
says what to propose, apply decides; without leadership nothing is ever due (HAZARDS 12). Renewals are not logged. Must
not know: how commands are proposed; wall-clock time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from paramserver.catalogue.commands import ExpireLease, PinAdvanced
from paramserver.catalogue.state import Model, ModelId, PinStage

LEASE_MS = 10_000
"""Default; configurable from 1 s to an hour."""


PIN_LIFE_MS = 30 * 60_000
"""After so long a pin ends however often it was renewed: what it keeps is memory of every replica."""


@dataclass(frozen=True, slots=True)
class LeaseKey:
    """One tenure of a lease: a claim under a new epoch is another one."""

    model: ModelId
    rank: int
    epoch: int
    initialization: bool = False
    pin: bool = False
    """Of the model's pin; `epoch` is its number."""


class LeaseClock:
    """All times in monotonic milliseconds of the host."""

    def __init__(self, lease_ms: int) -> None:
        self.lease_ms = lease_ms
        self._leading = False
        self._counted_from: dict[LeaseKey, int] = {}
        self._seen_from: dict[LeaseKey, int] = {}
        """Of pins: since when they are known here."""

    def leading(self, models: Mapping[ModelId, Model], now_ms: int) -> None:
        self._leading = True
        self._counted_from = dict.fromkeys(_held(models), now_ms)

    def deposed(self) -> None:
        self._leading = False
        self._counted_from.clear()
        self._seen_from.clear()

    def renewed(self, key: LeaseKey, now_ms: int) -> None:
        if self._leading:
            self._counted_from[key] = now_ms

    def due(self, models: Mapping[ModelId, Model], now_ms: int) -> list[ExpireLease | PinAdvanced]:
        """Leases that ended; those held now but not seen before begin to count. Bounded by the leases there are."""
        if not self._leading:
            return []
        held = list(_held(models))
        self._counted_from = {key: self._counted_from.get(key, now_ms) for key in held}
        self._seen_from = {key: self._seen_from.get(key, now_ms) for key in held if key.pin}
        return [_end(models, key) for key in held if self._over(key, now_ms)]

    def _over(self, key: LeaseKey, now_ms: int) -> bool:
        lived_ms = now_ms - self._seen_from.get(key, now_ms)
        return now_ms - self._counted_from[key] >= self.lease_ms or lived_ms >= PIN_LIFE_MS

    def ends_in_ms(self, key: LeaseKey, now_ms: int) -> int:
        """Until the lease ends if it is not renewed; a whole lease where it is not counted yet."""
        return max(0, self._counted_from.get(key, now_ms) + self.lease_ms - now_ms)


def _held(models: Mapping[ModelId, Model]) -> Iterator[LeaseKey]:
    for model in models.values():
        if model.initialization.session and not model.open:
            yield LeaseKey(model.model, 0, model.initialization.epoch, initialization=True)
        for rank, lease in enumerate(model.leases):
            if lease.held:
                yield LeaseKey(model.model, rank, lease.epoch)
        if model.pinned is not None:
            yield LeaseKey(model.model, 0, model.pinned.number, pin=True)


def _end(models: Mapping[ModelId, Model], key: LeaseKey) -> ExpireLease | PinAdvanced:
    if key.pin:
        return PinAdvanced(key.model, models[key.model].generation, key.epoch, 0, PinStage.ENDED)
    return ExpireLease(key.model, key.rank, key.epoch, key.initialization)
