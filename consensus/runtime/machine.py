"""A group's state machine and the index up to which it has applied: the two never part (HAZARDS 9).

Owns both. Invariants: every method runs on the group's lane, so `position` is the state's at any moment; entries are
applied once each, in order, and only if their payload's CRC verifies (RULES W1). Must not know: the core, peers, the
host's thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from consensus.core.errors import InvariantViolated
from consensus.core.interface import Configuration, Entry, EntryKind, GroupId, SnapshotMeta
from consensus.core.raft.log import size_of
from consensus.runtime.interface import Applied, StateMachine
from consensus.storage.checksum import crc32c
from consensus.storage.errors import SnapshotDamaged, StorageFull, UnknownFormat
from consensus.storage.interface import SnapshotStore, SnapshotWriter

ENTRY_OVERHEAD_BYTES = 64
"""What an entry costs in the log beside its payload."""


@dataclass(frozen=True, slots=True)
class AppliedBatch:
    """Entries up to `index` were applied; `results` holds those of kind NORMAL. Sizes in bytes."""

    index: int
    results: tuple[Applied, ...]
    sizes: tuple[tuple[int, int], ...]
    """(index, bytes in the log) of each entry."""
    state_bytes: int


@dataclass(frozen=True, slots=True)
class WrittenState:
    """A state in a snapshot file that is not durable yet."""

    writer: SnapshotWriter
    meta: SnapshotMeta


class MachineHost:
    """Lives on one lane."""

    def __init__(
        self, *, group: GroupId, machine: StateMachine, configuration: Configuration, node: int, incarnation: int
    ) -> None:
        self._group = group
        self._machine = machine
        self._configuration = configuration
        self._suffix = f"n{node}-i{incarnation}"
        self._index = 0
        self._term = 0

    def position(self) -> tuple[int, int]:
        """(index, term) of the last entry in the state as it is now."""
        return self._index, self._term

    def apply(self, entries: Sequence[Entry]) -> AppliedBatch:
        results = []
        for entry in entries:
            if entry.index != self._index + 1:
                raise InvariantViolated(f"group {self._group}: entry {entry.index} can't follow {self._index}")
            if crc32c(entry.payload) != entry.crc:
                raise InvariantViolated(f"group {self._group}: payload of committed entry {entry.index} is damaged")
            if entry.kind is EntryKind.NORMAL:
                results.append(Applied(entry.term, entry.index, self._machine.apply(entry)))
            self._index, self._term = entry.index, entry.term
        return AppliedBatch(
            index=self._index,
            results=tuple(results),
            sizes=tuple((entry.index, size_of(entry) + ENTRY_OVERHEAD_BYTES) for entry in entries),
            state_bytes=self._machine.size_bytes(),
        )

    def write(self, store: SnapshotStore) -> WrittenState | None:
        """Put the whole state into a new snapshot file; None when there is no space for it."""
        index, term = self.position()
        name = f"s{index}-t{term}-{self._suffix}"
        meta = SnapshotMeta(index=index, term=term, configuration=self._configuration, snapshot_id=name)
        try:
            writer = store.create(self._group, meta)
            for chunk in self._machine.snapshot():
                writer.write(chunk)
        except StorageFull:
            return None
        return WrittenState(writer, meta)

    def restore(self, store: SnapshotStore, meta: SnapshotMeta) -> str:
        """Replace the state by a snapshot's. Returns what is wrong with the file, or an empty string."""
        try:
            self._machine.restore(store.read(self._group, meta.snapshot_id))
        except (SnapshotDamaged, UnknownFormat) as error:
            return str(error)
        self._index, self._term = meta.index, meta.term
        self._configuration = meta.configuration
        return ""
