"""Crash at every IO call while a snapshot is received, named, recorded and put in place of an older state (FAULTS 5,
24; RULES W6).

Legal after each: the log names a snapshot whose file is whole, with the content of exactly its index, and entries that
go on from it; on disk the older state is untouched until the new one is recorded. Chunks are received in a second life
where the first one ended.
"""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from consensus.core.interface import SnapshotMeta
from consensus.storage.errors import StorageError, StorageFailed, StorageFull
from consensus.storage.interface import GroupAppend
from consensus.storage.memory import MemoryFileSystem, PowerLost
from consensus.storage.snapshots import CHUNK_BYTES, SnapshotFile, SnapshotFiles
from consensus.storage.wal import Wal
from tests.storage.logs import append, entries, install, open_log, snapshot, vote

FOLDER = "/data/snapshots"
OLD, NEW = snapshot(10), replace(snapshot(50, 2), size_bytes=2 * CHUNK_BYTES + 100)


def content_of(meta: SnapshotMeta) -> bytes:
    size = 5000 if meta.index == OLD.index else NEW.size_bytes
    return random.Random(meta.index).randbytes(size)


class Told:
    """What a life was told is durable."""

    def __init__(self) -> None:
        self.index = 0
        self.entries = 0
        self.term = 0


def own_snapshot(disk: MemoryFileSystem, wal: Wal, told: Told) -> None:
    """A replica's own: written, recorded, and the log below it given back."""
    files = SnapshotFiles(disk, FOLDER)
    wal.write([append(1, 1, 12)])
    wal.sync()
    told.entries = 12
    writer = files.create(1, OLD)
    writer.write(content_of(OLD))
    writer.commit()
    wal.write([install(1, OLD.index)])
    wal.sync()
    told.index = OLD.index
    wal.release(1, OLD.index + 1)


def receive(disk: MemoryFileSystem, wal: Wal, told: Told) -> None:
    """One from the leader: as much of it as is not there yet, then its name, its record, and what follows it."""
    files = SnapshotFiles(disk, FOLDER)
    writer = files.receive(1, NEW)
    content = content_of(NEW)
    for at in range(writer.held_bytes, len(content), 300_000):
        writer.write(content[at : at + 300_000])
    writer.commit()
    wal.write([replace(vote(1, 2), install=NEW)])
    wal.sync()
    told.index, told.entries, told.term = NEW.index, 0, 2
    wal.release(1, NEW.index + 1)
    files.delete_older(1, NEW.snapshot_id)
    files.sweep(1, "")
    wal.write([GroupAppend(group=1, entries=entries(51, 53, 2))])
    wal.sync()
    told.entries = 53


def check(disk: MemoryFileSystem, told: Told) -> tuple[Wal, int]:
    """A new start; returns its log and the index of its snapshot."""
    wal, recovery = open_log(disk)
    group = recovery.groups.get(1)
    meta = group.snapshot if group is not None else None
    index = meta.index if meta is not None else 0
    assert index >= told.index
    if group is not None:
        assert not group.damage
        assert group.hard_state.term >= told.term
        numbers = [entry.index for entry in group.entries]
        assert numbers == list(range(index + 1, index + 1 + len(numbers)))
        assert index + len(numbers) >= told.entries or index > OLD.index
    if meta is not None:
        files = SnapshotFiles(disk, FOLDER)
        files.verify(1, meta)
        assert b"".join(files.read(1, meta.snapshot_id)) == content_of(meta)
    return wal, index


def whole_course(disk: MemoryFileSystem, told: Told) -> None:
    wal, _ = open_log(disk)
    own_snapshot(disk, wal, told)
    receive(disk, wal, told)
    wal.close()


def hit_and_go_on(
    call: int, arm: Callable[[MemoryFileSystem, int], None], end: Callable[[MemoryFileSystem], None]
) -> bool:
    """Whether the course came as far as the n-th call."""
    disk, told = MemoryFileSystem(), Told()
    arm(disk, call)
    try:
        whole_course(disk, told)
    except (PowerLost, StorageFailed, StorageFull):
        pass
    reached = disk.faults.calls >= call
    end(disk)
    disk.faults.stop_call = disk.faults.fail_call = 0
    wal, index = check(disk, told)
    if index == OLD.index and told.entries >= OLD.index:
        receive(disk, wal, told)
        wal.close()
        _, index = check(disk, told)
        assert index == NEW.index
    return reached


def power(disk: MemoryFileSystem, call: int) -> None:
    disk.faults.stop_call = call


def error(disk: MemoryFileSystem, call: int) -> None:
    disk.faults.fail_call = call


def at_every_call(kind: str) -> None:
    for call in range(1, 2000):
        arm = error if kind == "error" else power
        if kind == "kill":
            reached = hit_and_go_on(call, arm, lambda disk: disk.kill())
        else:
            reached = hit_and_go_on(call, arm, lambda disk, call=call: disk.crash(random.Random(call)))
        if not reached:
            return
    pytest.fail("a run without a fault never came")


@pytest.mark.parametrize("kind", ["power cut", "error", "kill"])
def test_install_at_every_call(kind: str) -> None:
    at_every_call(kind)


# --- that the checks can fail -----------------------------------------------------------------------------------------


def _named_before_it_is_durable(patch: pytest.MonkeyPatch) -> None:
    def publish(self: SnapshotFile) -> None:
        self._open_file().close()
        self._file = None
        self._filesystem.rename(self._temporary, self._path)
        self._filesystem.sync_directory(self._folder)

    patch.setattr(SnapshotFile, "_publish", publish)


def _name_not_durable(patch: pytest.MonkeyPatch) -> None:
    def publish(self: SnapshotFile) -> None:
        file = self._open_file()
        file.datasync()
        file.close()
        self._file = None
        self._filesystem.rename(self._temporary, self._path)

    patch.setattr(SnapshotFile, "_publish", publish)


def _older_removed_first(patch: pytest.MonkeyPatch) -> None:
    """Older files go when the new one has its name, not when it is recorded."""
    commit = SnapshotFile.commit

    def commit_and_delete(self: SnapshotFile) -> SnapshotMeta:
        meta = commit(self)
        SnapshotFiles(self._filesystem, FOLDER).delete_older(1, meta.snapshot_id)
        return meta

    patch.setattr(SnapshotFile, "commit", commit_and_delete)


def _half_received_counts(patch: pytest.MonkeyPatch) -> None:
    """What an earlier life left is taken for durable: it is not written again."""

    def take_over(self: SnapshotFile, file: object) -> None:
        size = file.size()  # type: ignore[attr-defined]
        self._chunks = min(size // (CHUNK_BYTES + 44), (NEW.size_bytes - 1) // CHUNK_BYTES)
        self._content_bytes = self._chunks * CHUNK_BYTES
        self._end = self._chunks * (CHUNK_BYTES + 44)

    patch.setattr(SnapshotFile, "_take_over", take_over)


BUGS = {
    "named before it is durable": _named_before_it_is_durable,
    "the name is not durable": _name_not_durable,
    "older ones removed first": _older_removed_first,
    "half received counts unread": _half_received_counts,
}


@pytest.mark.parametrize("bug", BUGS)
def test_the_checks_can_fail(bug: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        BUGS[bug](patch)
        with pytest.raises((AssertionError, StorageError)):
            at_every_call("power cut")
