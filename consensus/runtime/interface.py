"""What the runtime asks of those above (state machine, listener) and beside it (clock, lanes, log writer).

Owns the seams that let the same runtime run on threads and an event loop, or in the simulator on a virtual clock.
Invariants: every callback comes on the host's thread (the event loop; the simulator's only thread), except
`StateMachine` methods, which run on the group's lane, one at a time, in order. Must not know: tensors, gRPC, files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

from consensus.core.interface import Configuration, Entry, GroupId, Payload, ReplicaId
from consensus.storage.interface import GroupAppend

T = TypeVar("T")


class StateMachine(Protocol):
    """Replicated state of one group. Deterministic: nothing but the entries decides what it becomes (RULES S13)."""

    def apply(self, entry: Entry) -> Any:
        """Apply a committed NORMAL entry; the returned value goes to the proposer (if it waits here) and to
        `GroupListener.applied`. Never raises for bad commands: a refusal is a result."""

    def snapshot(self) -> Iterator[Payload]:
        """The whole state as it is now, everything that `apply` ever looks at, as a stream of chunks. Returns at once:
        the chunks are taken later, on another lane, while `apply` goes on, and still show the state of this call
        (RULES W6). A chunk is used up when the next one is asked for. One stream at a time."""

    def restore(self, chunks: Iterator[memoryview]) -> None:
        """Replace the whole state. No snapshot is being written then."""

    def size_bytes(self) -> int:
        """Size of the state; log is released at a multiple of it (RULES W6)."""


@runtime_checkable
class Lender(Protocol):
    """A state machine whose snapshots hold on to memory that `apply` would otherwise overwrite or free. Optional: one
    whose whole state is small copies it at once."""

    def lent_bytes(self, entry: Entry | None = None) -> int:
        """Bytes that are in memory only for the snapshot being written; with `entry`: how many there would be once it
        was applied. 0 when none is being written."""

    def end_snapshot(self) -> None:
        """The stream that `snapshot` gave is used up, or nobody wants the rest of it."""


@dataclass(frozen=True, slots=True)
class Applied:
    """One applied NORMAL entry and what `StateMachine.apply` returned."""

    term: int
    index: int
    result: Any


class GroupListener(Protocol):
    """How the owner of a group hears of it. All on the host's thread."""

    def leading(self, term: int) -> None:
        """This replica leads and its no-op of that term is applied: it may judge and serve (RULES S2)."""

    def deposed(self, term: int) -> None:
        """No longer leading (comes also when `leading` never did)."""

    def leader_changed(self, leader: ReplicaId, term: int) -> None:
        """`leader` 0: unknown."""

    def applied(self, batch: Sequence[Applied]) -> None: ...

    def restored(self, index: int) -> None:
        """The state machine was replaced by a snapshot."""

    def handing_over(self, to: ReplicaId) -> None:
        """This leader hands over to replica `to` (0: no more, leading goes on): take no new work, let what was taken
        and is whole be proposed (RULES C6). After it succeeded `deposed` comes."""

    def drained(self) -> bool:
        """While handing over: nothing that was taken is still to be proposed. A planned transfer waits for it, for a
        while."""

    def note(self) -> bytes:
        """Annotation for the next answer to the leader, at most 4 KiB; empty for none."""

    def noted(self, replica: ReplicaId, note: bytes) -> None:
        """A follower's annotation arrived (at the leader)."""


@dataclass(frozen=True, slots=True)
class Committed:
    """The proposal was applied here at (term, index)."""

    term: int
    index: int
    result: Any


@dataclass(frozen=True, slots=True)
class Refused:
    """Not done, surely without effect. `leader` is where to go (0: unknown); `busy`: here, but later; `full`: the disk
    here takes no commands until there is space; `reason`: for people, one line."""

    leader: ReplicaId
    term: int
    busy: bool = False
    reason: str = ""
    full: bool = False


@dataclass(frozen=True, slots=True)
class Unknown:
    """Leadership was lost before the outcome was known: it may or may not be applied later (HAZARDS 31)."""

    term: int
    index: int


Outcome: TypeAlias = Committed | Refused | Unknown
"""Every proposal, of commands and of membership, gets exactly one (HAZARDS 28)."""


@dataclass(frozen=True, slots=True)
class ReadIndex:
    """State applied here up to `index` (it is) may answer the read. It is at most as old as the time since the read was
    asked for, plus `age_ms` (RULES R3)."""

    index: int
    age_ms: int


ReadOutcome: TypeAlias = ReadIndex | Refused
"""Every read gets exactly one."""


@dataclass(frozen=True, slots=True)
class Transferred:
    """`leader` leads now, in `term`."""

    leader: ReplicaId
    term: int


TransferOutcome: TypeAlias = Transferred | Refused
"""Every transfer gets exactly one. `Refused` here means that it was given up, or somebody else leads."""


@dataclass(frozen=True, slots=True)
class ReplicaCreated:
    """Its creation is durable, and it runs. Its handle: `NodeRuntime.groups[group]`."""

    group: GroupId
    replica: ReplicaId


@dataclass(frozen=True, slots=True)
class ReplicaDeleted:
    """Its tombstone is durable, its log is released, its files are removed."""

    group: GroupId
    replica: ReplicaId


CreateOutcome: TypeAlias = ReplicaCreated | Refused
DeleteOutcome: TypeAlias = ReplicaDeleted | Refused
OnConfiguration: TypeAlias = Callable[[Configuration, bool], None]
"""Hears of the configuration in force here: when the replica begins to run, whenever it changes, also back
(`committed` False: it may be rolled back), and when that one is committed."""


class Clock(Protocol):
    def now_ms(self) -> int:
        """Monotonic milliseconds."""


class LogWriter(Protocol):
    """Writes and syncs appends of all groups of the node, those of each group in the order submitted, many groups to
    one sync."""

    def submit(self, append: GroupAppend, done: Callable[[], None]) -> None:
        """`done` is called on the host's thread once durable. A failed write or sync never calls it: the process
        ends."""

    def release(self, group: GroupId, below_index: int) -> None: ...

    def load(self, group: GroupId, entries: Sequence[Entry]) -> tuple[Entry, ...] | None:
        """See `LogStore.load`. From any thread; not on the host's, for it reads the disk."""

    def full(self) -> bool:
        """There is no space for commands now (RULES W5): those submitted already wait for some, new ones should not
        come. What is small and keeps the group alive (hard state, no-ops, configurations) goes on from a reserve."""

    def exhausted(self) -> bool:
        """It is full, and hardly anything is left for commands that other replicas hold already: they should come
        later, too."""


APPLY_LANE = "apply"
"""Where state machines work."""


class Lanes(Protocol):
    """Where heavy work runs. Work of one lane runs in order, one at a time; `done` on the host's thread."""

    def run(self, lane: str, work: Callable[[], T], done: Callable[[T], None]) -> None: ...
