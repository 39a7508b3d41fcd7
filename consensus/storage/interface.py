"""What storage offers its host, and the seam to the file system below it.

Owns the values that cross both borders. Invariants: a `Wal` is driven by one caller at a time; `write` may buffer
nothing; what `sync` returned for is durable. Must not know: messages, elections, tensors, threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from consensus.core.interface import Configuration, Entry, GroupId, HardState, Payload, ReplicaId, SnapshotMeta


@dataclass(frozen=True, slots=True)
class Creation:
    """A replica that an order of group 0 made on this node (RULES I1): its id, and the configuration it begins with.
    Replicas of the bootstrap have none."""

    replica: ReplicaId
    configuration: Configuration


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupAppend:
    """What one `Ready` wants durable, in this order: creation, snapshot record, hard state, entries, marks.

    `tombstone` (alone): the replica of that id was deleted here, and none of that id is ever made here again (RULES
    I1); if the group's log is its, everything of the group but the tombstone is released. `forget` (alone): the newest
    snapshot can't be read; snapshot and entries are dropped and the mark of RULES W7 begins. `clear_forgetful`: that
    mark ends."""

    group: GroupId
    create: Creation | None = None
    tombstone: ReplicaId = 0
    forget: bool = False
    clear_forgetful: bool = False
    install: SnapshotMeta | None = None
    hard_state: HardState | None = None
    entries: tuple[Entry, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Whose log this is. `cluster` and uuids are 16 bytes. `peers` are the uuids of the other nodes, where known.
    `activated`: the node may have voted and acknowledged, so there must be a log."""

    cluster: bytes
    node: int
    node_uuid: bytes
    peers: dict[int, bytes] = field(default_factory=dict)
    activated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveredGroup:
    """What the log holds of one group. `entries` are contiguous and follow the snapshot (or start at or below it).

    `forgetful`: durable entries or a snapshot's record are lost, or were lost in an earlier life and not refilled yet;
    the mark is durable (RULES W7). `entries` and `snapshot` are what is left. `damage` says what was found and where,
    for people; it is the reason of the mark. `hard_state_lost`: term and vote may be lost too, so no refill gives the
    vote back: this replica must not run, and is to be removed and added again under a new id."""

    hard_state: HardState
    """`commit` is at most the last index of what is left."""
    snapshot: SnapshotMeta | None
    entries: tuple[Entry, ...]
    damage: str = ""
    forgetful: bool = False
    hard_state_lost: bool = False
    create: Creation | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """`incarnation` is this start's number, durable (RULES C4). `discarded_tail_bytes` is the torn tail, if any."""

    incarnation: int
    groups: dict[GroupId, RecoveredGroup]
    damage: str = ""
    """Records of which not even the group is known were lost, now or in an earlier life, and no later table lists all
    groups: what `groups` lists is judged there, but a bootstrap replica that it does not list may have voted here too,
    and must not run."""
    discarded_tail_bytes: int = 0
    tombstones: tuple[tuple[GroupId, ReplicaId], ...] = ()
    warnings: tuple[str, ...] = ()
    """What was found wrong but cost nothing: damage of bytes that nothing live depends on."""


class LogStore(Protocol):
    """`consensus.storage.wal.Wal` by shape. Opened by `Wal.open(filesystem, directory, identity, options) ->
    (Wal, Recovery)`, which has already made everything it recovered durable again (RULES W3)."""

    @property
    def full(self) -> bool:
        """There is no space for another segment; `prepare` looks again. May be asked from any thread, like
        `exhausted`."""

    @property
    def exhausted(self) -> bool:
        """It is full, and what room there is, is kept for what was appended before."""

    @property
    def unprepared(self) -> bool:
        """`prepare` has something to do. May be asked from any thread."""

    def write(self, appends: Sequence[GroupAppend]) -> None:
        """One batch: a gathered write of everything, at most `flush_bytes_max` (8 MiB) unless one entry is larger.
        Rotates segments as needed. Raises `StorageFull` before anything was written, and then can be tried again;
        `StorageFailed` otherwise. What holds no command is written to a reserve when the disk is full."""

    def sync(self) -> None:
        """Make all written batches durable. Raises `StorageFailed`: the process must end (HAZARDS 22)."""

    def release(self, group: GroupId, below_index: int) -> None:
        """Entries of the group below that index are covered by a durable snapshot record."""

    def prepare(self) -> None:
        """Off the hot path: make a spare segment ready; returns at once when there is one. Beside `load` the only
        method that may be called from another thread than the rest, at any time (zeroing a segment takes tens of
        ms)."""

    def load(self, group: GroupId, entries: Sequence[Entry]) -> tuple[Entry, ...] | None:
        """The same entries, with the payload of those that were left in the log, each checked against its CRC. None
        when one of them is not in the log any more: superseded, released, its replica deleted. From any thread. Raises
        `StorageFailed`: the log is damaged, and the process must end."""

    def idle(self) -> None:
        """100 ms without an append: flush an empty batch so that the last real one is covered (RULES W2)."""

    def close(self) -> None: ...


class SnapshotWriter(Protocol):
    def write(self, chunk: Payload) -> None: ...

    def commit(self) -> SnapshotMeta:
        """fsync, rename, fsync of the folder; returns the meta with `size_bytes`."""

    def abort(self) -> None: ...


class SnapshotReceiver(Protocol):
    """A `SnapshotWriter` for one that comes from elsewhere, perhaps in several lives of this process."""

    @property
    def held_bytes(self) -> int:
        """Content that is there already, of earlier lives too, checked."""

    def write(self, chunk: Payload) -> None: ...

    def commit(self) -> SnapshotMeta: ...

    def abort(self) -> None: ...

    def leave(self) -> None:
        """Close it; what is there is kept."""


class SnapshotStore(Protocol):
    """Snapshot files of all groups of a node: temp file, CRC per chunk, manifest, fsync, rename, fsync of folder."""

    def create(self, group: GroupId, meta: SnapshotMeta) -> SnapshotWriter: ...

    def receive(self, group: GroupId, meta: SnapshotMeta) -> SnapshotReceiver:
        """Like `create`, but goes on with what was received of it before. Files are kept over restarts."""

    def sweep(self, group: GroupId, keep_snapshot_id: str) -> None:
        """Remove half-received files, but for that one's; empty: all."""

    def read(self, group: GroupId, snapshot_id: str, offset: int = 0) -> Iterator[memoryview]:
        """The logical content from `offset` on, chunk by chunk (at most 1 MiB each), each checked. Raises
        `SnapshotDamaged`."""

    def delete_older(self, group: GroupId, keep_snapshot_id: str) -> None: ...

    def distrust(self, group: GroupId, reason: str) -> None:
        """Make durable that the group's snapshots of this node may hold a wrong state (RULES D1)."""

    def distrusted(self, group: GroupId) -> str:
        """The reason; empty when they are fine."""

    def trust(self, group: GroupId) -> None:
        """Its newest snapshot came from a replica that is right, and its record is durable."""

    def delete_all(self, group: GroupId) -> None:
        """Remove every snapshot of the group, half-written ones too: its replica was deleted."""


class File(Protocol):
    """An open file. All offsets and sizes in bytes."""

    def pwrite(self, buffers: Sequence[Payload], offset: int) -> None:
        """A gathered write of all buffers, whole or `OSError`."""

    def pread(self, length: int, offset: int) -> bytes: ...

    def size(self) -> int: ...

    def preallocate(self, length: int) -> None:
        """Allocate and fill with zeros up to `length`."""

    def datasync(self) -> None: ...

    def close(self) -> None: ...


class FileSystem(Protocol):
    """The only way storage touches a disk: `consensus.storage.filesystem.OsFileSystem`, or a simulated one."""

    def open(self, path: str, *, create: bool = False) -> File: ...

    def exists(self, path: str) -> bool: ...

    def listdir(self, path: str) -> list[str]: ...

    def mkdir(self, path: str) -> None:
        """Create with parents; fine when it exists."""

    def rename(self, source: str, target: str) -> None: ...

    def unlink(self, path: str) -> None: ...

    def sync_directory(self, path: str) -> None: ...

    def boot_id(self) -> str:
        """Of this run of the machine: as long as it is the same, what was written is in the page cache. "unknown": that
        can't be told."""
