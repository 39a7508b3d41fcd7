"""What people are shown of one group's replica on this node.

Owns the picture. Invariant: it is made of what was there at one moment, and changes with nothing. Must not know: how a
replica works, how it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from consensus.core.interface import Configuration, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStatus:
    """`core` is None for a replica that does not run (yet); then `problem` may say why."""

    core: Status | None
    problem: str
    configuration: Configuration
    """The one in force here."""
    dropped: Mapping[str, int]
    """Messages that the core dropped, by reason."""
    distrusted: str = ""
    """Why its state is not to be trusted: it votes and appends, and neither leads nor serves until it is rebuilt."""
    snapshots_written: int = 0
    snapshots_sent: int = 0
