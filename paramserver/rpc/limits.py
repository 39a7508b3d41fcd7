"""Bounds of what a node serves to clients, in one place.

Every bound has a behaviour at the bound, named with it. Refusals are BUSY (RESOURCE_EXHAUSTED) with a retry time.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from paramserver.wire.errors import Problem

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of one node. Connections between nodes, and questions for its status, count nowhere here."""

    connections_max: int = 1024
    """Connections of clients on which a call is served; a call on one more is refused."""
    calls_max: int = 4096
    """Calls and streams of clients at a time; one more is refused."""
    streams_max: int = 256
    """Push streams at a time; one more is refused."""
    initial_streams_max: int = 64
    """Streams of initial values at a time; one more is refused."""
    pulls_max: int = 1024
    """Pulls at a time, those that wait for a version too; one more is refused."""
    pull_blocks_max: int = 16_384
    """Blocks named in one pull; more are a mistake (INVALID_ARGUMENT): without any, all of the group are meant."""
    pulls_bytes_max: int = 256 * MIB
    """Blocks being written to pulls. A further one waits, and readers that stand still meanwhile give way."""
    replies_bytes_max: int = 256 * MIB
    """Weights that wait to be written to push streams, each version of a block counted once. Beyond it, replies go
    without their weights: the worker pulls them."""
    stream_replies_bytes_max: int = 64 * MIB
    """The same of one stream, so that one slow reader costs the others nothing."""
    reader_timeout_ms: int = 10_000
    """A reader that takes nothing of what waits for it for so long is ended; if it doesn't read that either for as long
    again, its connection is closed."""
    reader_patience_ms: int = 1000
    """The same of a pull while others wait for its room."""
    retry_after_ms: int = 100
    retry_after_ms_max: int = 5000
    """What a refusal suggests: from the first to the second, the longer the more are refused."""
    refusals_per_s: int = 100
    """So many the suggested time aims at: refusing costs time, too."""

    def validate(self) -> list[Problem]:
        return [
            Problem(field.name, "a whole number >= 1", str(getattr(self, field.name)))
            for field in fields(self)
            if getattr(self, field.name) < 1
        ]
