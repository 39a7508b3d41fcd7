"""What the state of the disk means for replicas.

Owns which replica may run on what recovery found, and what a full disk keeps out. Invariants: a replica that may have
voted in what is lost never runs again under its id (RULES W7); on a full disk no command is proposed, and when hardly
any room is left none is taken from a leader, so that what is in the logs already keeps its room, and everything else
goes on (RULES W5). Must not know: files, records.
"""

from __future__ import annotations

from dataclasses import replace

from consensus.core.interface import AppendRequest, EntryKind
from consensus.storage.interface import RecoveredGroup
from consensus.transport.interface import TransportMessage


def why_not(recovered: RecoveredGroup | None, *, damage: str) -> str:
    """Why a replica must not run on what the log held of it; empty when it may. `damage` is that of the whole log, of
    which it is not known whom it hit (`Recovery.damage`)."""
    if recovered is None:
        return damage  # It is not in the log, but may have voted in what was lost of it.
    return recovered.damage if recovered.hard_state_lost else ""


def nameless(recovered: RecoveredGroup) -> bool:
    """Whether damage hides which replica the log is of: one that was made later, or the bootstrap's. Neither may run on
    it ever again."""
    return recovered.create is None and recovered.hard_state_lost


def forgotten(recovered: RecoveredGroup, *, damage: str) -> RecoveredGroup:
    """What is left of a replica whose snapshot can't be read, once its mark is durable (`GroupAppend.forget`)."""
    return replace(
        recovered,
        hard_state=replace(recovered.hard_state, commit=0),
        snapshot=None,
        entries=(),
        forgetful=True,
        damage=damage,
    )


def brings_commands(message: TransportMessage) -> bool:
    """What an exhausted disk keeps out: the leader sends it again, as if the network had lost it."""
    return isinstance(message, AppendRequest) and any(entry.kind is EntryKind.NORMAL for entry in message.entries)
