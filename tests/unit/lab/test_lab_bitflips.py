"""One bit of a stopped server's folder: in what counts, and so that the format's readers notice."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from consensus.core.interface import Configuration, HardState, SnapshotMeta
from consensus.storage.errors import SnapshotDamaged
from consensus.storage.filesystem import DirectoryLock, OsFileSystem
from consensus.storage.interface import GroupAppend
from consensus.storage.recovery import read_log
from consensus.storage.snapshots import SnapshotFiles
from paramserver.config import NodeConfig
from paramserver.disk import Disk
from paramserver.lab.bitflips import NothingToFlip, bitflip_snapshot, bitflip_wal
from paramserver.lab.errors import LabError
from tests.storage.logs import append


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Ten entries, seven of them committed; the last write is not known durable."""
    config = NodeConfig(node=1, members={1: "127.0.0.1:7001"}, data_dir=str(tmp_path / "data"), segment_bytes=1 << 20)
    disk = Disk.open(config)
    for index in range(1, 10):
        disk.wal.write([append(1, index, index, size=500)])
        disk.wal.sync()
    disk.wal.write([GroupAppend(group=1, hard_state=HardState(term=1, vote=1, commit=7))])
    disk.wal.sync()
    disk.wal.write([append(1, 10, 10, size=500)])
    disk.lock.release()
    return config.data_dir


def snapshot_in(folder: str) -> SnapshotMeta:
    """Of three chunks, and named by the log."""
    disk = Disk.open(
        NodeConfig(node=1, members={1: "127.0.0.1:7001"}, data_dir=folder, segment_bytes=1 << 20), OsFileSystem()
    )
    meta = SnapshotMeta(index=5, term=1, configuration=Configuration((1,)), size_bytes=0, snapshot_id="five")
    writer = disk.snapshots.create(1, meta)
    writer.write(bytes(range(256)) * (10 << 10))
    meta = writer.commit()
    disk.wal.write([GroupAppend(group=1, install=meta)])
    disk.wal.sync()
    disk.wal.close()
    disk.lock.release()
    return meta


def contents(folder: str) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_a_flip_in_the_log_hits_a_committed_durable_entry_and_is_found(folder: str) -> None:
    before = contents(folder)
    flips = set()
    for seed in range(30):
        flip = bitflip_wal(folder, random.Random(seed))
        flips.add(flip.index)
        changed = {path for path, content in contents(folder).items() if content != before[path]}
        assert changed == {flip.path}
        found = read_log(OsFileSystem(), f"{folder}/wal", None)
        assert found.groups[1].damage
        assert found.warnings
        data = bytearray(Path(flip.path).read_bytes())
        data[flip.offset] ^= 1 << flip.bit
        Path(flip.path).write_bytes(data)
        assert contents(folder) == before, "one bit, and no more"
    assert flips == set(range(1, 8))
    assert bitflip_wal(folder, random.Random(1)) != bitflip_wal(folder, random.Random(2))


def test_a_flip_in_a_snapshot_hits_its_content_and_is_found(folder: str) -> None:
    with pytest.raises(NothingToFlip, match="names no snapshot"):
        bitflip_snapshot(folder, random.Random(0))
    meta = snapshot_in(folder)
    store = SnapshotFiles(OsFileSystem(), f"{folder}/snapshots")
    store.verify(1, meta)
    for seed in range(10):
        whole = contents(folder)
        flip = bitflip_snapshot(folder, random.Random(seed))
        assert (flip.group, flip.index) == (1, 5)
        with pytest.raises(SnapshotDamaged):
            store.verify(1, meta)
        Path(flip.path).write_bytes(whole[flip.path])
    store.verify(1, meta)


def test_a_folder_in_use_and_one_without_entries_are_refused(folder: str, tmp_path: Path) -> None:
    lock = DirectoryLock(folder)
    with pytest.raises(LabError, match="a server runs on"):
        bitflip_wal(folder, random.Random(0))
    lock.release()
    with pytest.raises(NothingToFlip, match="no durable, committed entry"):
        bitflip_wal(folder, random.Random(0), group=2)
