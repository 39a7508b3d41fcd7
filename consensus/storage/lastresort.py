"""What is left to do for a group whose majority may have forgotten what it acknowledged: an operator names the loss.

Owns the end of the mark of RULES W7 without a refill, in a folder that no server uses. Invariants: only a replica that
is forgetful, whose term and vote are not in doubt, and whose last index the caller names takes part again; the end of
the mark is durable when `accept_loss` returns; a refusal changes nothing. Must not know: command lines, other replicas.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from consensus.core.interface import GroupId, SnapshotMeta
from consensus.storage import lifemark
from consensus.storage.errors import LossRefused, NoSuchGroup, SnapshotDamaged, StorageFailed
from consensus.storage.interface import FileSystem, GroupAppend, Identity
from consensus.storage.options import WalOptions
from consensus.storage.recovery import read_log
from consensus.storage.snapshots import SnapshotFiles
from consensus.storage.tables import Mark


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a forgetful replica still holds. Everything up to `last_index`, the snapshot included; `replica` 0: of the
    bootstrap. `why` it may have held more."""

    group: GroupId
    replica: int
    term: int
    vote: int
    commit: int
    snapshot_index: int
    last_index: int
    last_term: int
    why: str


def held(filesystem: FileSystem, folder: str, identity: Identity, group: GroupId) -> Held:
    """As the next start would find it; nothing is written. Raises `LossRefused` when there is nothing to accept here,
    and what reading the log raises."""
    log = read_log(filesystem, f"{folder}/wal", identity)
    found = log.groups.get(group)
    if found is None:
        known = ", ".join(map(str, sorted(log.groups))) or "none"
        raise NoSuchGroup(f"this folder's log holds no replica of group {group}; it holds {known}")
    if doubt := lifemark.forgotten(filesystem, folder):
        found.forgot(doubt)
    if Mark.HARD_STATE_LOST in found.marks:
        raise LossRefused(
            f"the term and the vote of group {group}'s replica may be lost, too: it could vote twice, and never takes "
            "part again under its id; replace the node (paramserver node replace)"
        )
    if Mark.FORGETFUL not in found.marks:
        raise LossRefused(f"group {group}'s replica in this folder is not forgetful: it lost nothing, and votes")
    entries, snapshot = found.prefix(), found.snapshot
    if snapshot is not None:
        _check_snapshot(filesystem, folder, group, snapshot)
    base = (snapshot.index, snapshot.term) if snapshot is not None else (0, 0)
    last = (entries[-1][0], entries[-1][1].term) if entries else base
    return Held(
        group=group,
        replica=found.create.replica if found.create is not None else 0,
        term=found.hard_state.term,
        vote=found.hard_state.vote,
        commit=found.hard_state.commit,
        snapshot_index=base[0],
        last_index=last[0],
        last_term=last[1],
        why=found.damage,
    )


def accept_loss(
    filesystem: FileSystem,
    folder: str,
    identity: Identity,
    group: GroupId,
    keep_up_to: int,
    options: WalOptions | None = None,
) -> Held:
    """End the mark; the caller holds the folder's lock. Raises `LossRefused` before anything is written, also when
    `keep_up_to` is not the last index held: then it names another loss. Else what opening a log raises."""
    found = held(filesystem, folder, identity, group)
    if keep_up_to != found.last_index:
        raise LossRefused(
            f"group {group}'s replica in this folder holds everything up to index {found.last_index}, not {keep_up_to}"
        )
    # As a start does it: what the other groups may have forgotten is marked durably before the sign of it is gone.
    wal, recovery = lifemark.open_log(filesystem, folder, identity, options)
    with contextlib.closing(wal):
        now = recovery.groups[group]
        base = now.snapshot.index if now.snapshot is not None else 0
        if not now.forgetful or now.hard_state_lost or base + len(now.entries) != found.last_index:
            raise StorageFailed(f"the log of {folder} reads differently the second time")
        wal.write([GroupAppend(group=group, clear_forgetful=True)])
        wal.sync()
    return found


def _check_snapshot(filesystem: FileSystem, folder: str, group: GroupId, meta: SnapshotMeta) -> None:
    """A start that can't read it drops snapshot and entries, and marks the replica again."""
    try:
        SnapshotFiles(filesystem, f"{folder}/snapshots", read_only=True).verify(group, meta)
    except SnapshotDamaged as error:
        raise LossRefused(
            f"group {group}'s snapshot can't be read ({error}), so what is above it is of no use; start the server "
            "once, which drops both, stop it, and look again: this replica then holds nothing"
        ) from None
