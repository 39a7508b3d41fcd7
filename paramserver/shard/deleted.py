"""Models that were deleted, as a data group remembers them: an id is never used again (RULES M1).

Owns what is kept so that a command to create a shard, sent long ago by a leader of group 0 that is none any more, does
not bring a deleted model back. Invariants: below `settled` every model has been created in all its groups, so whatever
is not here was deleted, or never was for this group; above it the deleted ones are named. So this stays small however
many models come and go. Must not know: what a shard is.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Deleted:
    settled: int = 0
    models: frozenset[int] = frozenset()

    def has(self, model: int) -> bool:
        """Of a model that is not here: it will never be."""
        return model < self.settled or model in self.models

    def and_also(self, model: int, settled: int) -> Deleted:
        bound = max(self.settled, settled)
        return Deleted(bound, frozenset(one for one in (*self.models, model) if one >= bound))


NOTHING_DELETED = Deleted()
