"""Snapshot files: whole and durable, or not there; damage is found before anything is handed out as good."""

import random
from dataclasses import replace

import pytest

from consensus.storage.errors import SnapshotDamaged, StorageFailed, UnknownFormat
from consensus.storage.memory import MemoryFileSystem, PowerLost
from consensus.storage.snapshots import CHUNK_BYTES, HEADER, SnapshotFiles, snapshot_path
from consensus.storage.wal import Wal
from tests.storage.logs import IDENTITY, OPTIONS, append, install, snapshot

FOLDER = "/data/snapshots"


@pytest.fixture
def disk() -> MemoryFileSystem:
    return MemoryFileSystem()


@pytest.fixture
def files(disk: MemoryFileSystem) -> SnapshotFiles:
    return SnapshotFiles(disk, FOLDER)


def write(files: SnapshotFiles, index: int, *chunks: bytes, group: int = 1) -> None:
    writer = files.create(group, snapshot(index))
    for chunk in chunks:
        writer.write(chunk)
    meta = writer.commit()
    assert (meta.index, meta.size_bytes) == (index, sum(map(len, chunks)))


def content(files: SnapshotFiles, index: int, group: int = 1) -> bytes:
    return b"".join(files.read(group, snapshot(index).snapshot_id))


@pytest.mark.parametrize("sizes", [(), (0,), (5,), (CHUNK_BYTES,), (CHUNK_BYTES + 1, 7), (3, 3 * CHUNK_BYTES, 9)])
def test_content_comes_back_in_chunks(files: SnapshotFiles, sizes: tuple[int, ...]) -> None:
    parts = [random.Random(size).randbytes(size) for size in sizes]
    write(files, 5, *parts)
    chunks = list(files.read(1, snapshot(5).snapshot_id))
    assert b"".join(chunks) == b"".join(parts)
    assert all(len(chunk) == CHUNK_BYTES for chunk in chunks[:-1])
    assert files.meta(1, snapshot(5).snapshot_id).configuration == snapshot(5).configuration
    files.verify(1, snapshot(5))


def test_reading_goes_on_from_an_offset(files: SnapshotFiles) -> None:
    data = random.Random(1).randbytes(5 * CHUNK_BYTES // 2)
    write(files, 5, data)
    for offset in (0, 17, CHUNK_BYTES - 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 5, len(data)):
        chunks = list(files.read(1, snapshot(5).snapshot_id, offset))
        assert b"".join(chunks) == data[offset:]
        assert all(len(chunk) for chunk in chunks)


def receive(files: SnapshotFiles, size: int):  # type: ignore[no-untyped-def]
    return files.receive(1, replace(snapshot(6), size_bytes=size))


def test_a_half_received_file_is_gone_on_with_by_the_next_life(disk: MemoryFileSystem) -> None:
    data = random.Random(1).randbytes(3 * CHUNK_BYTES + 100)
    files = SnapshotFiles(disk, FOLDER)
    writer = receive(files, len(data))
    assert writer.held_bytes == 0
    writer.write(data[: 2 * CHUNK_BYTES + 50])
    assert writer.held_bytes == 2 * CHUNK_BYTES + 50
    disk.kill()
    again = SnapshotFiles(disk, FOLDER)
    writer = receive(again, len(data))
    assert writer.held_bytes == 2 * CHUNK_BYTES, "whole chunks"
    writer.write(data[2 * CHUNK_BYTES :])
    assert writer.commit().size_bytes == len(data)
    assert content(again, 6) == data
    assert disk.listdir(f"{FOLDER}/group-1") == ["1-6.snapshot"]


@pytest.mark.parametrize("torn", [True, False])
def test_a_power_cut_in_a_half_received_file_costs_what_does_not_verify(torn: bool) -> None:
    data = random.Random(1).randbytes(12 * CHUNK_BYTES)
    for seed in range(20):
        disk = MemoryFileSystem()
        files = SnapshotFiles(disk, FOLDER)
        disk.mkdir(f"{FOLDER}/group-1")
        writer = receive(files, len(data))
        disk.sync_directory(f"{FOLDER}/group-1")
        writer.write(data[: 10 * CHUNK_BYTES])
        disk.crash(random.Random(seed), torn=torn)
        again = SnapshotFiles(disk, FOLDER)
        writer = receive(again, len(data))
        held = writer.held_bytes
        assert held >= 7 * CHUNK_BYTES, "synced as it grew"
        writer.write(data[held:])
        writer.commit()
        disk.crash(random.Random(seed), torn=False)
        assert content(SnapshotFiles(disk, FOLDER), 6) == data, "all of it is durable"


def test_a_flipped_bit_in_a_half_received_file_is_fetched_again(disk: MemoryFileSystem) -> None:
    data = random.Random(1).randbytes(3 * CHUNK_BYTES)
    files = SnapshotFiles(disk, FOLDER)
    receive(files, len(data)).write(data[: 2 * CHUNK_BYTES])
    (name,) = disk.listdir(f"{FOLDER}/group-1")
    disk.flip_bit(f"{FOLDER}/group-1/{name}", CHUNK_BYTES + 500)
    assert receive(files, len(data)).held_bytes == CHUNK_BYTES


def test_the_last_chunk_always_comes_again(files: SnapshotFiles) -> None:
    """It ends the transfer: without it nobody would commit the file."""
    writer = receive(files, 2 * CHUNK_BYTES)
    writer.write(bytes(2 * CHUNK_BYTES))
    writer.leave()
    assert receive(files, 2 * CHUNK_BYTES).held_bytes == CHUNK_BYTES


def test_half_received_files_are_swept(disk: MemoryFileSystem, files: SnapshotFiles) -> None:
    files.sweep(1, "")
    for index in (5, 6, 7):
        files.receive(1, snapshot(index)).write(bytes(CHUNK_BYTES))
    write(files, 4, b"x")
    files.sweep(1, snapshot(6).snapshot_id)
    assert disk.listdir(f"{FOLDER}/group-1") == ["1-4.snapshot", "1-6.snapshot.receiving"]
    files.sweep(1, "")
    assert disk.listdir(f"{FOLDER}/group-1") == ["1-4.snapshot"]


def test_what_is_longer_than_the_snapshot_does_not_become_one(disk: MemoryFileSystem, files: SnapshotFiles) -> None:
    receive(files, 9 * CHUNK_BYTES).write(bytes(5 * CHUNK_BYTES))
    writer = receive(files, 2 * CHUNK_BYTES)
    writer.write(bytes(2 * CHUNK_BYTES - writer.held_bytes))
    with pytest.raises(SnapshotDamaged, match="does not belong"):
        writer.commit()
    assert disk.listdir(f"{FOLDER}/group-1") == []


def test_every_flipped_bit_is_found(disk: MemoryFileSystem, files: SnapshotFiles) -> None:
    write(files, 5, bytes(range(256)) * 4)
    path = snapshot_path(FOLDER, 1, snapshot(5).snapshot_id)
    for offset in range(len(disk.read(path))):
        disk.flip_bit(path, offset, offset % 8)
        with pytest.raises(SnapshotDamaged):
            files.verify(1, snapshot(5))
        disk.flip_bit(path, offset, offset % 8)
    files.verify(1, snapshot(5))


def test_a_chunk_of_another_place_is_found(disk: MemoryFileSystem, files: SnapshotFiles) -> None:
    write(files, 5, bytes(2 * CHUNK_BYTES))
    path = snapshot_path(FOLDER, 1, snapshot(5).snapshot_id)
    data = disk.read(path)
    half = CHUNK_BYTES + HEADER.size
    disk.overwrite(path, data[half : 2 * half] + data[:half])
    with pytest.raises(SnapshotDamaged, match="chunk 0"):
        content(files, 5)


def test_cut_short_missing_or_of_another_index(disk: MemoryFileSystem, files: SnapshotFiles) -> None:
    with pytest.raises(SnapshotDamaged, match="missing"):
        content(files, 5)
    write(files, 5, bytes(1000))
    write(files, 6, bytes(1000))
    with pytest.raises(SnapshotDamaged, match="holds index 5 term 1, the log says index 7"):
        files.verify(1, snapshot(5).__class__(7, 1, snapshot(5).configuration, snapshot(5).snapshot_id))
    path = snapshot_path(FOLDER, 1, snapshot(5).snapshot_id)
    disk.overwrite(path, disk.read(snapshot_path(FOLDER, 1, snapshot(6).snapshot_id)))
    with pytest.raises(SnapshotDamaged, match="its manifest is of snapshot '1-6'"):
        content(files, 5)
    for cut in range(0, 1100, 7):
        other = MemoryFileSystem()
        again = SnapshotFiles(other, FOLDER)
        other.mkdir(f"{FOLDER}/group-1")
        other.open(path, create=True)
        other.overwrite(path, disk.read(path)[:cut])
        with pytest.raises(SnapshotDamaged):
            content(again, 5)


@pytest.mark.parametrize("name", ["", ".", "../x", "a/b", ".hidden", "x" * 101, "a\n", "a\0", "ä"])
def test_names_from_outside_stay_in_their_folder(files: SnapshotFiles, name: str) -> None:
    with pytest.raises(ValueError, match="snapshot id"):
        files.create(1, snapshot(5).__class__(5, 1, snapshot(5).configuration, name))
    with pytest.raises(ValueError, match="snapshot id"):
        files.meta(1, name)


def test_leftovers_are_removed_when_opened(disk: MemoryFileSystem, files: SnapshotFiles) -> None:
    write(files, 5, b"five")
    files.create(1, snapshot(6)).write(bytes(CHUNK_BYTES))
    disk.kill()
    assert len(disk.listdir(f"{FOLDER}/group-1")) == 2
    again = SnapshotFiles(disk, FOLDER)
    assert disk.listdir(f"{FOLDER}/group-1") == ["1-5.snapshot"]
    assert content(again, 5) == b"five"


def test_abort_leaves_nothing(disk: MemoryFileSystem, files: SnapshotFiles) -> None:
    writer = files.create(1, snapshot(6))
    writer.write(b"x")
    writer.abort()
    writer.abort()
    assert disk.listdir(f"{FOLDER}/group-1") == []
    with pytest.raises(StorageFailed, match="finished"):
        writer.commit()


def test_older_ones_go_newer_ones_stay(disk: MemoryFileSystem, files: SnapshotFiles) -> None:
    """Two snapshots close together (HAZARDS 24): the newer one may be on its way into the log."""
    for index in (3, 5, 9):
        write(files, index, b"x")
    write(files, 3, b"y", group=2)
    path = snapshot_path(FOLDER, 1, snapshot(3).snapshot_id)
    disk.flip_bit(path, len(disk.read(path)) - 10)
    files.delete_older(1, snapshot(5).snapshot_id)
    assert disk.listdir(f"{FOLDER}/group-1") == ["1-5.snapshot", "1-9.snapshot"]
    assert content(files, 3, group=2) == b"y"
    path = snapshot_path(FOLDER, 1, snapshot(9).snapshot_id)
    disk.flip_bit(path, len(disk.read(path)) - 10)
    with pytest.raises(SnapshotDamaged):
        files.delete_older(1, snapshot(9).snapshot_id)
    assert content(files, 5) == b"x"


def test_a_failed_sync_says_so(disk: MemoryFileSystem, files: SnapshotFiles) -> None:
    writer = files.create(1, snapshot(5))
    writer.write(b"x")
    disk.faults.fail_syncs = 1
    with pytest.raises(StorageFailed, match="writing snapshot"):
        writer.commit()


def test_a_newer_format_is_refused(monkeypatch: pytest.MonkeyPatch, files: SnapshotFiles) -> None:
    monkeypatch.setattr("consensus.storage.snapshots.FORMAT_VERSION", 9)
    write(files, 5, b"x")
    monkeypatch.undo()
    with pytest.raises(UnknownFormat, match="version 9"):
        content(files, 5)


@pytest.mark.parametrize("fault", ["stop", "fail"])
def test_the_state_and_the_index_it_goes_up_to_never_part(fault: str) -> None:
    """HAZARDS 9. The state here is its own applied index. Whatever call a crash hits between writing state and telling
    the log, a later start finds the state of exactly the index that the log says: nothing is applied twice or left
    out."""
    for call in range(1, 10_000):
        disk = MemoryFileSystem()
        if fault == "stop":
            disk.faults.stop_call = call
        else:
            disk.faults.fail_call = call
        durable = 0
        try:
            files = SnapshotFiles(disk, FOLDER)
            wal, _ = Wal.open(disk, "/data/wal", IDENTITY, OPTIONS)
            for index in (10, 20, 30):
                wal.write([append(1, index - 9, index)])
                wal.sync()
                write(files, index, str(index).encode())
                wal.write([install(1, index)])
                wal.sync()
                durable = index
                wal.release(1, index + 1)
                files.delete_older(1, snapshot(index).snapshot_id)
        except (PowerLost, StorageFailed):
            pass
        fired = disk.faults.fired
        disk.crash(random.Random(call))
        disk.faults.stop_call = disk.faults.fail_call = 0
        group = Wal.open(disk, "/data/wal", IDENTITY, OPTIONS)[1].groups.get(1)
        meta = group.snapshot if group is not None else None
        assert (meta.index if meta is not None else 0) >= durable
        if meta is not None:
            again = SnapshotFiles(disk, FOLDER)
            again.verify(1, meta)
            assert int(b"".join(again.read(1, meta.snapshot_id))) == meta.index
        if not fired:
            return
    pytest.fail("a run without a fault never came")


def test_distrust_is_durable_until_trust_is(disk: MemoryFileSystem) -> None:
    for call in range(1, 40):
        for act in ("distrust", "trust"):
            disk = MemoryFileSystem()
            files = SnapshotFiles(disk, FOLDER)
            write(files, 5, b"five")
            if act == "trust":
                files.distrust(1, "a block differs")
            disk.faults.calls, disk.faults.stop_call = 0, call
            done = False
            try:
                if act == "distrust":
                    files.distrust(1, "a block differs")
                    files.distrust(1, "another")
                else:
                    files.trust(1)
                done = True
            except PowerLost:
                pass
            disk.crash(random.Random(call))
            disk.faults.stop_call = 0
            found = SnapshotFiles(disk, FOLDER).distrusted(1)
            if done:
                assert found == ("a block differs" if act == "distrust" else "")
            assert content(SnapshotFiles(disk, FOLDER), 5) == b"five"
    assert SnapshotFiles(disk, FOLDER).distrusted(2) == ""
