"""What the state of the disk means for replicas.

Owns which replica may run on what recovery found. Invariant: a replica that may have voted in what is lost never runs
again under its id (RULES W7). Must not know: files, records.
"""

from __future__ import annotations

from consensus.storage.interface import RecoveredGroup


def why_not(recovered: RecoveredGroup | None, *, damage: str) -> str:
    """Why a replica must not run on what the log held of it; empty when it may. `damage` is that of the whole log, of
    which it is not known whom it hit (`Recovery.damage`)."""
    if recovered is None:
        return damage  # It is not in the log, but may have voted in what was lost of it.
    # A forgetful one runs once the core can be told.
    return recovered.damage if recovered.hard_state_lost or recovered.forgetful else ""
