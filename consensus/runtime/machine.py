"""A group's state machine and the index up to which it has applied: the two never part (HAZARDS 9).

Owns both, and what waits to be applied. Invariants: every method runs on the group's lane, so `position` is the
state's at any moment; entries are applied once each, in order, and only if their payload's CRC verifies (RULES W1);
while a snapshot is being written nothing is applied that would make it cost more memory than its budget (W6); what a
snapshot says of the configuration is the last one that was applied, so a committed one (HAZARDS 20). Must not know:
the core, peers, the host's thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TypeAlias

from consensus.core.configuration import decode_configuration
from consensus.core.errors import InvariantViolated
from consensus.core.interface import Configuration, Entry, EntryKind, GroupId, Payload, SnapshotMeta
from consensus.core.raft.log import size_of
from consensus.runtime.interface import Applied, Lender, StateMachine
from consensus.storage.checksum import crc32c
from consensus.storage.errors import SnapshotDamaged, UnknownFormat
from consensus.storage.interface import SnapshotStore

LOAD_BYTES = 1 << 20
"""Entries that were left to the log are read back about so much at a time, when their turn comes."""
Load: TypeAlias = Callable[[Sequence[Entry]], "tuple[Entry, ...] | None"]
"""See `LogStore.load`."""
ENTRY_OVERHEAD_BYTES = 64
"""What an entry costs in the log beside its payload."""


def log_bytes_of(entry: Entry) -> int:
    """What it costs in the log."""
    return size_of(entry) + ENTRY_OVERHEAD_BYTES


@dataclass(frozen=True, slots=True)
class AppliedBatch:
    """Entries up to `index` were applied; `results` holds those of kind NORMAL. Sizes in bytes."""

    index: int
    results: tuple[Applied, ...]
    sizes: tuple[tuple[int, int], ...]
    """(index, bytes in the log) of each entry."""
    state_bytes: int
    waits: bool = False
    """More is to be applied, when the snapshot being written has gone on, or is over."""


@dataclass(frozen=True, slots=True)
class Capture:
    """The state as it was at `meta.index`, as a stream. Its `size_bytes` is not known yet."""

    meta: SnapshotMeta
    chunks: Iterator[Payload]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A snapshot that can't be restored: `damaged`: its file does not verify. Otherwise another build's format, or a
    bug, keeps the state machine from reading it, which no refilling cures."""

    problem: str
    damaged: bool


class MachineHost:
    """Lives on one lane."""

    def __init__(
        self,
        *,
        group: GroupId,
        machine: StateMachine,
        configuration: Configuration,
        node: int,
        incarnation: int,
        load: Load,
        budget_bytes: int = 64 << 20,
    ) -> None:
        self._group = group
        self._machine = machine
        self._lender = machine if isinstance(machine, Lender) else None
        self._configuration = configuration
        self._suffix = f"n{node}-i{incarnation}"
        self._load = load
        self._budget_bytes = budget_bytes
        self._index = 0
        self._term = 0
        self._waiting: deque[Entry] = deque()
        self._held = False
        """Nothing is applied until the state is replaced."""
        self._captured = 0
        """Number of the capture that is being written; 0: none."""

    def position(self) -> tuple[int, int]:
        """(index, term) of the last entry in the state as it is now."""
        return self._index, self._term

    def apply(self, entries: Sequence[Entry]) -> AppliedBatch:
        """Apply what waits, then these. With none: go on with what waits."""
        waiting = self._waiting
        waiting.extend(entries)
        results: list[Applied] = []
        sizes: list[tuple[int, int]] = []
        while waiting and not self._held and self._read_back() and self._has_room(waiting[0]):
            entry = waiting.popleft()
            self._apply(entry, results)
            sizes.append((entry.index, log_bytes_of(entry)))
        return AppliedBatch(
            index=self._index,
            results=tuple(results),
            sizes=tuple(sizes),
            state_bytes=self._machine.size_bytes(),
            waits=bool(waiting) and not self._held,
        )

    def _read_back(self) -> bool:
        """Have the payload of what is next. Where it is not in the log any more, a snapshot that holds it is on its way
        here: nothing more is applied until that comes."""
        waiting = self._waiting
        if not waiting[0].stored_bytes:
            return True
        part: list[Entry] = []
        size = 0
        for entry in takewhile(lambda entry: entry.stored_bytes, waiting):
            size += entry.stored_bytes
            if part and size > LOAD_BYTES:
                break
            part.append(entry)
        loaded = self._load(part)
        if loaded is None:
            self._held = True
            return False
        for _ in part:
            waiting.popleft()
        waiting.extendleft(reversed(loaded))
        return True

    def _has_room(self, entry: Entry) -> bool:
        """Whether the snapshot being written stays within its budget when this entry is applied."""
        if not self._captured or self._lender is None:
            return True
        return self._lender.lent_bytes(entry) <= self._budget_bytes

    def _apply(self, entry: Entry, results: list[Applied]) -> None:
        if entry.index != self._index + 1:
            raise InvariantViolated(f"group {self._group}: entry {entry.index} can't follow {self._index}")
        if crc32c(entry.payload) != entry.crc:
            raise InvariantViolated(f"group {self._group}: payload of committed entry {entry.index} is damaged")
        if entry.kind is EntryKind.NORMAL:
            results.append(Applied(entry.term, entry.index, self._machine.apply(entry)))
        elif entry.kind is EntryKind.CONFIGURATION:
            self._configure(entry)
        self._index, self._term = entry.index, entry.term

    def _configure(self, entry: Entry) -> None:
        try:
            self._configuration = decode_configuration(entry.payload)
        except ValueError as error:
            raise InvariantViolated(
                f"group {self._group}: committed entry {entry.index} is no configuration: {error}"
            ) from error

    # --- a state that is not to be trusted (RULES D1) -----------------------------------------------------------------

    def hold(self) -> int:
        """Apply nothing more until `restore`: what comes waits. Returns up to where it was applied."""
        self._held = True
        return self._index

    def begin_at(self, meta: SnapshotMeta) -> None:
        """The snapshot that the log begins with can't be used: hold there, with no state."""
        self._index, self._term = meta.index, meta.term
        self._configuration = meta.configuration
        self._held = True

    # --- snapshots --------------------------------------------------------------------------------------------------

    def capture(self, number: int) -> Capture | None:
        """The state as it is now; takes no time. `number` rises; what an earlier one still holds is given up. None
        before anything was applied, for there is no log that it could stand for, and of a state that is held."""
        self.release(self._captured)
        index, term = self.position()
        if not index or self._held:
            return None
        # No two states ever have one name, not even of the same index: half of one must not be completed by another.
        name = f"s{index}-t{term}-{self._suffix}-{number}"
        meta = SnapshotMeta(index=index, term=term, configuration=self._configuration, snapshot_id=name)
        chunks = self._machine.snapshot()
        self._captured = number
        return Capture(meta, chunks)

    def release(self, number: int) -> None:
        """That capture is written, or given up."""
        if number != self._captured:
            return
        self._captured = 0
        if self._lender is not None:
            self._lender.end_snapshot()

    def restore(self, store: SnapshotStore, meta: SnapshotMeta) -> Unreadable | None:
        """Replace the state by a snapshot's, whole or not at all. Returns what is wrong with the file, if anything is.
        What waited to be applied up to there is in it."""
        self.release(self._captured)
        try:
            self._machine.restore(store.read(self._group, meta.snapshot_id))
        except (SnapshotDamaged, UnknownFormat) as error:
            return Unreadable(str(error), damaged=_damaged(store, self._group, meta))
        self._index, self._term = meta.index, meta.term
        self._configuration = meta.configuration
        self._held = False
        while self._waiting and self._waiting[0].index <= meta.index:
            self._waiting.popleft()
        return None


def _damaged(store: SnapshotStore, group: GroupId, meta: SnapshotMeta) -> bool:
    try:
        for _ in store.read(group, meta.snapshot_id):
            pass
    except SnapshotDamaged:
        return True
    except UnknownFormat:
        return False
    return False
