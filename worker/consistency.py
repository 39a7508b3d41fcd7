"""How new the weights of a pull must be, where no exact version is asked for (RULES R2, R3).

    model.pull(consistency=paramserver.LINEARIZABLE)
    model.pull(consistency=paramserver.bounded(250))

Must not know: how servers find out.
"""

from __future__ import annotations

from dataclasses import dataclass

from worker.errors import InvalidArgument

BOUNDED_MS_MAX = 86_400_000
"""A day. A longer bound is a mistake: without `consistency` any committed state will do."""


@dataclass(frozen=True, slots=True)
class Consistency:
    """Made by `LINEARIZABLE` and `bounded`. With 0 no bound on age; `linearizable` needs none."""

    linearizable: bool = False
    bounded_ms: int = 0


ANY = Consistency()
LINEARIZABLE = Consistency(linearizable=True)
"""Each block holds every update that was acknowledged, to anybody, before the call. Costs the replica a round of
heartbeats with its leader; refused while no leader has a quorum."""


def bounded(age_ms: int) -> Consistency:
    """Each block holds every update that was acknowledged `age_ms` milliseconds before the call, or later. Mostly
    answered at once, by any replica; without a quorum until the bound has passed. `Tensors.age_ms` says how old.
    Raises InvalidArgument for what is no whole number from 1 to a day."""
    if isinstance(age_ms, bool) or not isinstance(age_ms, int) or not 0 < age_ms <= BOUNDED_MS_MAX:
        raise InvalidArgument(f"bounded: age_ms {age_ms!r}", f"expected a whole number from 1 to {BOUNDED_MS_MAX}")
    return Consistency(bounded_ms=age_ms)
