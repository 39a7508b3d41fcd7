"""Bad input row 24, for the files of a data folder: such as belong to another node, cluster, group or time, put where
a server's own lie. Refused or not believed, said with the place, and left as they were."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from consensus.core.interface import SnapshotMeta
from consensus.storage.errors import StorageError
from consensus.storage.filesystem import DirectoryLock, OsFileSystem
from consensus.storage.identity import load_or_create
from consensus.storage.inspection import inspect_log
from consensus.storage.interface import GroupAppend
from consensus.storage.snapshots import SnapshotDamaged, SnapshotFiles
from consensus.storage.wal import Wal
from tests.bad_input.test_data_folder_files import CLUSTER, CONFIGURATION, OPTIONS, call, called, files
from tests.storage.logs import append, entries


def node_folder(path: Path, *, node: int, cluster: bytes = CLUSTER, index: int = 20) -> str:
    """Of a node that stopped clean: a group with a log and a snapshot."""
    folder, disk = str(path / f"node-{node}-{cluster[:1].decode()}"), OsFileSystem()
    DirectoryLock(folder).release()
    identity = load_or_create(disk, folder, cluster, node)
    wal, _ = Wal.open(disk, f"{folder}/wal", identity.identity(), OPTIONS)
    meta = SnapshotMeta(index, 1, CONFIGURATION, f"s{index}-t1-n{node}")
    writer = SnapshotFiles(disk, f"{folder}/snapshots").create(1, meta)
    writer.write(bytes(2_000_000))
    wal.write([append(1, 1, 30)])
    wal.write([GroupAppend(group=1, install=writer.commit())])
    wal.sync()
    wal.close()
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return node_folder(tmp_path, node=1)


def segment(folder: str, place: int) -> str:
    """Of those that hold the log, in order."""
    disk = OsFileSystem()
    rows = [each for each in inspect_log(disk, f"{folder}/wal").segments if each.part != "spare"]
    return rows[place].path


def grow(folder: str, node: int) -> None:
    """Several segments more."""
    identity = load_or_create(OsFileSystem(), folder, CLUSTER, node)
    wal, _ = Wal.open(OsFileSystem(), f"{folder}/wal", identity.identity(), OPTIONS)
    for first in range(31, 331, 10):
        wal.write([GroupAppend(group=1, entries=entries(first, first + 9, size=3000 + node))])
        wal.sync()
    wal.close()


def started(folder: str) -> Any:
    """What a server's start finds in the log; the folder must be as it was when that is refused."""
    before = files(folder)
    identity = load_or_create(OsFileSystem(), folder, CLUSTER, 1)
    try:
        wal, recovery = Wal.open(OsFileSystem(), f"{folder}/wal", identity.identity(), OPTIONS)
    except StorageError as error:
        assert files(folder) == before
        return str(error)
    wal.close()
    return recovery


@pytest.mark.parametrize(("node", "cluster"), [(2, CLUSTER), (1, b"o" * 16)], ids=["node", "cluster"])
def test_the_log_of_another_node_or_cluster(
    folder: str, tmp_path: Path, node: int, cluster: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    other = node_folder(tmp_path, node=node, cluster=cluster)
    shutil.rmtree(f"{folder}/wal")
    shutil.copytree(f"{other}/wal", f"{folder}/wal")
    refused = started(folder)
    assert isinstance(refused, str)
    assert "belongs to" in refused
    code, out, err = call(capsys, "wal", "verify", folder)
    assert code == 1
    assert "belongs to" in out + err


@pytest.mark.parametrize("place", [0, 3, -1], ids=["oldest", "middle", "newest"])
def test_a_segment_of_another_node_in_the_place_of_an_own_one(
    folder: str, tmp_path: Path, place: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """All that it holds verifies by itself, and its batches have the numbers that are expected there."""
    other = node_folder(tmp_path, node=2)
    grow(folder, 1)
    grow(other, 2)
    taken = segment(other, place)
    assert taken.rpartition("/")[2] == segment(folder, place).rpartition("/")[2]
    shutil.copy(taken, segment(folder, place))
    code, _, err = call(capsys, "wal", "verify", folder)
    assert code == 1
    assert "belongs to node 2" in err
    assert "belongs to node 2" in started(folder)


def test_a_snapshot_of_another_node_under_the_name_of_an_own_one(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = node_folder(tmp_path, node=2, index=25)
    name = f"{folder}/snapshots/group-1/s20-t1-n1.snapshot"
    shutil.copy(f"{other}/snapshots/group-1/s25-t1-n2.snapshot", name)
    code, found = called(capsys, "snapshot", "verify", folder)
    assert code == 1
    (one,) = found["snapshots"]
    assert (one["state"], one["path"]) == ("damaged", name)
    assert "its manifest is of snapshot 's25-t1-n2'" in one["problem"]
    with pytest.raises(SnapshotDamaged, match="s25-t1-n2"):
        SnapshotFiles(OsFileSystem(), f"{folder}/snapshots").meta(1, "s20-t1-n1")


def test_a_snapshot_of_another_group_or_time_lies_there_and_is_not_used(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = node_folder(tmp_path, node=2, index=25)
    shutil.copy(f"{other}/snapshots/group-1/s25-t1-n2.snapshot", f"{folder}/snapshots/group-1/")
    code, found = called(capsys, "snapshot", "verify", folder)
    assert code == 0
    assert {one["index"]: one["state"] for one in found["snapshots"]} == {20: "current", 25: "unrecorded"}
    assert started(folder).groups[1].snapshot.snapshot_id == "s20-t1-n1", "the log says which one counts"
