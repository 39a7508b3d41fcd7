"""Bounds of a data group's leader, in one place."""

from __future__ import annotations

from dataclasses import dataclass, fields

from paramserver.wire.errors import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderOptions:
    """Every bound has a behaviour at the bound, named with it."""

    window_blocks: int = 16
    """n of RULES S5, a model and group: blocks whose sums may be open at once. A rank that is further ahead is held
    back at its stream. Open sums take at most window_blocks x block_bytes x ranks, whoever sends what."""
    window_bytes: int = 256 << 20
    """Contributions in open sums, of all groups and models of the node. At the bound only what others wait for is
    taken: of each model the lowest open block. The rest is held back at its stream."""
    streams_max: int = 256
    """Push streams of the group, parked ones too; one more is refused with BUSY."""
    initial_blocks_in_flight: int = 8
    """A stream of initial values; the next block is read when one was stored."""
    waiters_max: int = 4096
    """Pulls of this group that wait for a version; one more is refused with BUSY."""
    note_bytes_max: int = 4096
    """Digests that ride on one answer to the leader; the others wait for the next."""
    digests_backlog: int = 4096
    """Digests waiting to be sent, or to be compared; the oldest is dropped and counted."""
    scrub_period_ms: int = 300_000
    """Every block that is not updated is checked in memory, and compared between replicas, once in this time."""
    retry_after_ms: int = 100
    """What a BUSY refusal suggests."""

    def validate(self) -> list[Problem]:
        return [
            Problem(field.name, "a number >= 1", str(getattr(self, field.name)))
            for field in fields(self)
            if getattr(self, field.name) < 1
        ]
