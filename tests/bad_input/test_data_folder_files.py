"""Files of a data folder that are cut short, flipped, newer, foreign or missing, and the commands that look at them:
what is wrong is named with its place, nothing is changed (FAULTS bad input row 24, for these files)."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from consensus.core.interface import Configuration, HardState, SnapshotMeta
from consensus.storage import inspection
from consensus.storage.errors import StorageFailed
from consensus.storage.filesystem import DirectoryLock, OsFileSystem
from consensus.storage.identity import load_or_create
from consensus.storage.interface import Creation, FileSystem, GroupAppend
from consensus.storage.options import WalOptions
from consensus.storage.records import Kind, find_headers
from consensus.storage.segments import segment_numbers, segment_path
from consensus.storage.snapshots import SnapshotFiles
from consensus.storage.wal import Wal
from paramserver.cli.entry import run
from tests.storage.logs import append, entries

CLUSTER = b"c" * 16
OPTIONS = WalOptions(segment_bytes=128 << 10, reserve_bytes=16 << 10, open_copy_bytes_max=0)
CONFIGURATION = Configuration((1, 2, 3), next_replica=4)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Of a node that stopped clean: two groups, a snapshot, a later replica, a tombstone."""
    path, disk = str(tmp_path / "data"), OsFileSystem()
    DirectoryLock(path).release()
    identity = load_or_create(disk, path, CLUSTER, 1)
    wal, _ = Wal.open(disk, f"{path}/wal", identity.identity(), OPTIONS)
    writer = SnapshotFiles(disk, f"{path}/snapshots").create(1, SnapshotMeta(20, 1, CONFIGURATION, "s20-t1-n1"))
    writer.write(bytes(3_000_000))
    meta = writer.commit()
    wal.write([append(1, 1, 30), GroupAppend(group=1, hard_state=HardState(1, 2, 20))])
    wal.write([GroupAppend(group=1, install=meta), GroupAppend(group=2, create=Creation(65_540, CONFIGURATION))])
    wal.write([append(2, 1, 5), GroupAppend(group=3, create=Creation(65_541, CONFIGURATION))])
    wal.write([GroupAppend(group=3, tombstone=65_541)])
    wal.sync()
    wal.close()
    return path


def files(folder: str) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    before = files(words[2]) if os.path.isdir(words[2]) else {}
    code = run(words)
    assert not before or files(words[2]) == before, "looking changes nothing"
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def called(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    code, out, _ = call(capsys, *words, "--json")
    return code, json.loads(out)


def flip(path: str, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 4]))


def record_of(folder: str, kind: Kind, group: int) -> tuple[str, int]:
    """Path of the segment that holds the last such record, and where its payload begins."""
    disk = OsFileSystem()
    found = ("", 0)
    for number in segment_numbers(disk, f"{folder}/wal"):
        path = segment_path(f"{folder}/wal", number)
        for header in find_headers(Path(path).read_bytes(), 0, number):
            if header.kind is kind and header.group == group:
                found = (path, header.payload_offset)
    return found


def test_a_sound_folder_is_fine(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "wal", "verify", folder)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "fine"
    assert "group 3: replica 65541 was deleted" in out
    code, found = called(capsys, "wal", "verify", folder)
    assert (code, found["ok"], found["in_use"], found["damage"], found["node"]) == (0, True, False, [], 1)
    one, two = found["groups"]
    assert (one["first_index"], one["last_index"], one["snapshot_id"], one["vote"]) == (21, 30, "s20-t1-n1", 2)
    assert (two["replica"], two["last_index"]) == (65_540, 5)
    code, out, _ = call(capsys, "snapshot", "verify", folder)
    assert code == 0
    assert "current" in out
    code, found = called(capsys, "snapshot", "verify", folder)
    assert [(each["state"], each["size_bytes"]) for each in found["snapshots"]] == [("current", 3_000_000)]


def test_dump_shows_every_record(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "wal", "dump", folder)
    assert code == 0
    for word in ("head", "hard_state", "vote 2 commit 20", "snapshot", "s20-t1-n1", "create", "tombstone", "entry"):
        assert word in out
    code, out, _ = call(capsys, "wal", "dump", folder, "--group", "2", "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["index"] for line in lines if line["kind"] == "entry"] == [1, 2, 3, 4, 5]
    assert {line["group"] for line in lines} == {2}


def test_a_dump_of_an_unknown_group_is_refused_with_those_that_are_there(
    folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, "wal", "dump", folder, "--group", "9")
    assert (code, out) == (1, "")
    assert f"--group 9: no record of it in {folder}/wal" in err
    assert "there are records of: 1, 2, 3;" in err


def test_a_flipped_bit_of_the_log_is_named_with_its_place(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    path, offset = record_of(folder, Kind.ENTRY, 2)
    flip(path, offset)
    code, out, _ = call(capsys, "wal", "verify", folder)
    assert code == 1
    assert out.splitlines()[-1] == "damaged"
    assert "group 2: 1 log entries from index 5 on are damaged" in out
    code, out, _ = call(capsys, "wal", "dump", folder)
    assert code == 1
    assert any(line.startswith(f"! {path} offset ") for line in out.splitlines())


def test_a_lost_vote_names_the_repair(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    path, offset = record_of(folder, Kind.HARD_STATE, 1)
    flip(path, offset)
    code, found = called(capsys, "wal", "verify", folder)
    assert code == 1
    assert any("paramserver node replace" in line for line in found["damage"])
    assert found["groups"][0]["hard_state_lost"]


def test_a_mark_of_an_earlier_start_is_a_note(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    flip(*record_of(folder, Kind.ENTRY, 2))
    identity = load_or_create(OsFileSystem(), folder, CLUSTER, 1)
    Wal.open(OsFileSystem(), f"{folder}/wal", identity.identity(), OPTIONS)[0].close()
    code, out, _ = call(capsys, "wal", "verify", folder)
    assert code == 0
    assert "note: group 2: marked by an earlier start" in out
    assert "forgetful" in out


def test_a_segment_that_is_gone_or_cut_is_noticed(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    identity = load_or_create(OsFileSystem(), folder, CLUSTER, 1)
    wal, _ = Wal.open(OsFileSystem(), f"{folder}/wal", identity.identity(), OPTIONS)
    wal.write([GroupAppend(group=1, entries=entries(31, 90, size=3_000))])
    wal.sync()
    wal.close()
    path, _ = record_of(folder, Kind.ENTRY, 2)
    os.truncate(path, 8_000)
    code, out, _ = call(capsys, "wal", "verify", folder)
    assert code == 1
    os.unlink(path)
    code, out, _ = call(capsys, "wal", "verify", folder)
    assert code == 1
    assert "damaged or missing" in out


def test_a_torn_tail_is_no_damage(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    identity = load_or_create(OsFileSystem(), folder, CLUSTER, 1)
    wal, _ = Wal.open(OsFileSystem(), f"{folder}/wal", identity.identity(), OPTIONS)
    wal.write([append(1, 31, 40)])
    wal.sync()
    flip(*record_of(folder, Kind.ENTRY, 1))
    code, out, _ = call(capsys, "wal", "verify", folder)
    assert code == 0
    assert "a torn tail of" in out
    wal.close()


def test_newer_files_are_refused(folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr("consensus.storage.tables.HEAD_VERSION", 9)
    identity = load_or_create(OsFileSystem(), folder, CLUSTER, 1)
    options = replace(OPTIONS, open_copy_bytes_max=1)
    with pytest.raises(Exception, match="head of version 2"):
        Wal.open(OsFileSystem(), f"{folder}/wal", identity.identity(), options)
    code, _, err = call(capsys, "wal", "verify", folder)
    assert code == 1
    assert "head of version 2" in err
    monkeypatch.undo()
    monkeypatch.setattr("consensus.storage.snapshots.FORMAT_VERSION", 9)
    code, out, _ = call(capsys, "snapshot", "verify", folder)
    assert code == 1
    assert "version 2; this build knows 9" in out


def test_foreign_files_are_named_and_left_alone(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(folder, "wal", "notes.txt").write_text("x")
    Path(folder, "snapshots", "group-1", "x.bak").write_text("x")
    Path(folder, "snapshots", "lost+found").mkdir()
    code, out, _ = call(capsys, "wal", "verify", folder)
    assert code == 0
    assert "notes.txt: a foreign file" in out
    code, out, _ = call(capsys, "snapshot", "verify", folder)
    assert code == 0
    assert out.count("a foreign file") == 2


@pytest.mark.parametrize("harm", ["flip", "cut", "missing", "manifest"])
def test_a_snapshot_that_does_not_verify_is_named(folder: str, harm: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = f"{folder}/snapshots/group-1/s20-t1-n1.snapshot"
    if harm == "flip":
        flip(path, 2_500_000)
    elif harm == "cut":
        os.truncate(path, 1_000_000)
    elif harm == "manifest":
        flip(path, os.path.getsize(path) - 20)
    else:
        os.unlink(path)
    code, found = called(capsys, "snapshot", "verify", folder)
    assert code == 1
    (one,) = found["snapshots"]
    assert one["state"] == ("missing" if harm == "missing" else "damaged")
    assert one["path"] == path
    assert harm != "flip" or "chunk 2 (content offset 2097152)" in one["problem"]


def test_a_damaged_identity_is_named(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    flip(f"{folder}/identity", 30)
    code, out, _ = call(capsys, "wal", "verify", folder)
    assert code == 1
    assert f"{folder}/identity is damaged" in out


def test_a_folder_in_use_is_looked_at_and_it_is_said(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    lock = DirectoryLock(folder)
    code, out, _ = call(capsys, "wal", "verify", folder)
    assert code == 0
    assert "a server is using this folder" in out
    code, found = called(capsys, "snapshot", "verify", folder)
    assert (code, found["in_use"]) == (0, True)
    lock.release()


def test_a_log_that_moves_on_while_it_is_dumped(
    folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A running server recycles segments: found as a dump that ended with "No such file"."""
    real, gone = inspection.dump_log, [2]

    def dump(disk: FileSystem, directory: str) -> Iterator[Any]:
        if gone[0]:
            gone[0] -= 1
            raise StorageFailed("reading the log: No such file")
        return real(disk, directory)

    monkeypatch.setattr(inspection, "dump_log", dump)
    lock = DirectoryLock(folder)
    code, out, _ = call(capsys, "wal", "dump", folder)
    assert code == 0
    assert "hard_state" in out
    gone[0] = 99
    code, _, err = call(capsys, "wal", "dump", folder)
    assert code == 1
    assert "its server writes and recycles it meanwhile: try again" in err
    lock.release()


@pytest.mark.parametrize("command", [("wal", "verify"), ("wal", "dump"), ("snapshot", "verify")])
def test_what_is_no_data_folder_is_refused(
    command: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(capsys, *command, str(tmp_path / "nowhere"))
    assert code == 2
    assert "there is no folder" in err
    code, _, err = call(capsys, *command, str(tmp_path))
    assert code == 2
    assert "no data folder" in err


def test_a_log_that_is_lost_altogether_is_said_so(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    for path in Path(folder, "wal").iterdir():
        data = bytearray(path.read_bytes())
        for header in list(find_headers(bytes(data), 0, int(path.stem, 16))):
            if header.kind is Kind.HEAD:
                data[header.payload_offset] ^= 1
        path.write_bytes(data)
    code, _, err = call(capsys, "wal", "verify", folder)
    assert code == 1
    assert "no segment has a head that verifies" in err
