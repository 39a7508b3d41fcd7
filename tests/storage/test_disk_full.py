"""A full disk refuses pushes before it is touched; votes go on in the reserve; it clears by itself (FAULTS 10,
RULES W5)."""

import contextlib
import random

import pytest

from consensus.core.interface import EntryKind
from consensus.storage.errors import StorageFull
from consensus.storage.interface import GroupAppend
from consensus.storage.memory import MemoryFileSystem
from consensus.storage.snapshots import SnapshotFiles
from tests.storage.logs import append, entry, indexes, open_log, segment_files, snapshot, span, vote


def test_pushes_are_refused_and_votes_go_on() -> None:
    disk = MemoryFileSystem()
    wal, _ = open_log(disk)
    disk.faults.capacity_bytes = disk.used_bytes()
    last = 0
    while disk.faults.fired is False:
        with contextlib.suppress(StorageFull):
            wal.write([append(1, last + 1, last + 10, size=900)])
            wal.sync()
            last += 10
    assert last > 50
    with pytest.raises(StorageFull, match="no space for a segment"):
        wal.write([append(1, last + 1, last + 10, size=900)])
    for term in range(2, 5):
        wal.write([vote(1, term), vote(2, term)])
        wal.write([GroupAppend(group=1, entries=(entry(last + 1, 9, kind=EntryKind.NOOP),))])
        wal.sync()
        with pytest.raises(StorageFull):
            wal.write([append(1, last + 2, last + 2, term=9, size=30_000)])
        wal.idle()
    disk.kill()
    with pytest.raises(StorageFull):
        open_log(disk)
    disk.faults.capacity_bytes = 1 << 40
    recovery = open_log(disk)[1]
    assert indexes(recovery, 1) == [*span(1, last), (last + 1, 9)]
    assert recovery.groups[2].hard_state.term == 4


def test_it_clears_when_space_returns() -> None:
    disk = MemoryFileSystem()
    wal, _ = open_log(disk)
    disk.faults.capacity_bytes = disk.used_bytes()
    last = 0
    for _ in range(200):
        try:
            wal.write([append(1, last + 1, last + 10, size=900)])
        except StorageFull:
            wal.write([vote(1, last + 1)])
            wal.sync()
            wal.idle()
            disk.faults.capacity_bytes += 300_000
            continue
        wal.sync()
        last += 10
        wal.prepare()
    wal.close()
    assert indexes(open_log(disk)[1], 1) == span(1, last)


def test_half_made_segments_are_not_left() -> None:
    disk = MemoryFileSystem()
    wal, _ = open_log(disk)
    disk.faults.capacity_bytes = disk.used_bytes() + 1000
    before = set(segment_files(disk))
    with pytest.raises(StorageFull):
        wal.write([append(1, 1, 300, size=1000)])
    assert set(segment_files(disk)) == before
    wal.write([append(1, 1, 3)])
    wal.sync()
    disk.crash(random.Random(1))
    disk.faults.capacity_bytes = 1 << 40
    assert indexes(open_log(disk)[1], 1) == span(1, 3)


def test_a_node_starts_on_a_full_disk() -> None:
    disk = MemoryFileSystem()
    wal, _ = open_log(disk)
    wal.write([append(1, 1, 3)])
    wal.sync()
    disk.faults.capacity_bytes = disk.used_bytes()
    for _ in range(2):
        disk.kill()
        assert indexes(open_log(disk)[1], 1) == span(1, 3)


def test_a_snapshot_that_does_not_fit_leaves_nothing() -> None:
    disk = MemoryFileSystem()
    files = SnapshotFiles(disk, "/data/snapshots")
    disk.faults.capacity_bytes = 1_500_000
    writer = files.create(1, snapshot(5))
    with pytest.raises(StorageFull, match="no space for snapshot"):
        writer.write(bytes(3 << 20))
    assert disk.listdir("/data/snapshots/group-1") == []
    disk.faults.capacity_bytes = 1 << 40
    writer = files.create(1, snapshot(5))
    writer.write(bytes(3 << 20))
    assert writer.commit().size_bytes == 3 << 20
