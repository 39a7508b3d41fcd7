"""Both file systems keep the same promises; the one in memory loses what a power cut may lose."""

import errno
import os
import random
import threading
from pathlib import Path

import pytest

from consensus.storage.filesystem import OsFile, OsFileSystem
from consensus.storage.interface import FileSystem
from consensus.storage.memory import MemoryFileSystem, PowerLost
from consensus.storage.options import WalOptions
from consensus.storage.wal import Wal
from tests.storage.logs import IDENTITY, append, indexes, install, span, vote


@pytest.fixture(params=["os", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[FileSystem, str]:
    if request.param == "os":
        return OsFileSystem(), str(tmp_path)
    memory = MemoryFileSystem()
    memory.mkdir("/root")
    return memory, "/root"


def test_files_and_folders(folder: tuple[FileSystem, str]) -> None:
    disk, root = folder
    base = f"{root}/a/b"
    disk.mkdir(base)
    disk.mkdir(base)
    assert disk.exists(base)
    assert disk.listdir(base) == []
    with pytest.raises(FileNotFoundError):
        disk.open(f"{base}/x")
    file = disk.open(f"{base}/x", create=True)
    file.preallocate(5000)
    assert file.size() == 5000
    file.pwrite([b"abc", b"", memoryview(b"def"), bytearray(b"ghi")], 10)  # type: ignore[list-item]
    file.pwrite([b"end"], 6000)
    file.datasync()
    assert file.pread(9, 10) == b"abcdefghi"
    assert file.pread(10, 5995) == b"\0\0\0\0\0end"
    assert file.pread(10, 9999) == b""
    file.close()
    disk.rename(f"{base}/x", f"{base}/y")
    disk.sync_directory(base)
    assert disk.listdir(base) == ["y"]
    assert disk.listdir(f"{root}/a") == ["b"]
    again = disk.open(f"{base}/y")
    assert again.size() == 6003
    again.close()
    disk.unlink(f"{base}/y")
    with pytest.raises(FileNotFoundError):
        disk.unlink(f"{base}/y")
    assert not disk.exists(f"{base}/y")


def test_more_buffers_than_one_call_takes(folder: tuple[FileSystem, str]) -> None:
    disk, root = folder
    parts = [bytes([number % 256]) * (number % 7) for number in range(3000)]
    file = disk.open(f"{root}/many", create=True)
    file.pwrite(parts, 3)
    assert file.pread(1 << 20, 3) == b"".join(parts)
    file.close()
    file.close()


def test_short_writes_are_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwritev

    def short(descriptor: int, buffers: list[bytes], offset: int) -> int:
        return real(descriptor, [b"".join(buffers)[:5]], offset)

    monkeypatch.setattr(os, "pwritev", short)
    file = OsFileSystem().open(f"{tmp_path}/x", create=True)
    file.pwrite([b"0123", b"", b"456789ab", b"cdef"], 0)
    assert file.pread(100, 0) == b"0123456789abcdef"
    monkeypatch.setattr(os, "pwritev", lambda *_: 0)
    with pytest.raises(OSError, match="wrote nothing"):
        file.pwrite([b"x"], 0)
    file.close()


def test_a_log_on_a_real_disk(tmp_path: Path) -> None:
    options = WalOptions(segment_bytes=256 << 10, reserve_bytes=64 << 10)
    directory = f"{tmp_path}/data/wal"
    last = 0
    for life in range(1, 5):
        wal, recovery = Wal.open(OsFileSystem(), directory, IDENTITY, options)
        assert recovery.incarnation == life
        if last:
            assert indexes(recovery, 1) == span(last - 4, last)
            assert recovery.groups[2].hard_state.term == life - 1
        for _ in range(10):
            wal.write([append(1, last + 1, last + 20, size=5000), vote(2, life)])
            wal.sync()
            last += 20
            wal.write([install(1, last - 5)])
            wal.sync()
            wal.release(1, last - 4)
            wal.prepare()
        if life % 2:
            wal.close()
    assert len(os.listdir(directory)) <= 16
    assert all(type(OsFileSystem().open(f"{directory}/{name}")) is OsFile for name in os.listdir(directory)[:1])


def test_power_cut_loses_what_was_not_synced() -> None:
    disk = MemoryFileSystem()
    disk.mkdir("/d")
    file = disk.open("/d/x", create=True)
    file.pwrite([b"old"], 0)
    file.datasync()
    disk.sync_directory("/d")
    file.pwrite([b"new"], 0)
    disk.open("/d/y", create=True)
    disk.rename("/d/x", "/d/z")
    disk.crash(random.Random(1), torn=False)
    assert disk.listdir("/d") == ["x"]
    assert disk.read("/d/x") == b"old"
    with pytest.raises(OSError) as caught:
        file.size()
    assert caught.value.errno == errno.EBADF


def test_power_cut_may_tear_but_stays_the_same_for_a_seed() -> None:
    def outcome(seed: int) -> bytes:
        disk = MemoryFileSystem()
        file = disk.open("/x", create=True)
        disk.sync_directory("/")
        file.preallocate(4096)
        file.datasync()
        file.pwrite([b"n" * 2048], 0)
        disk.crash(random.Random(seed))
        return disk.read("/x")

    outcomes = [outcome(seed) for seed in range(40)]
    assert outcomes == [outcome(seed) for seed in range(40)]
    assert len(set(outcomes)) > 5
    assert bytes(4096) in outcomes
    assert b"n" * 2048 + bytes(2048) in outcomes


def test_a_kill_keeps_the_page_cache() -> None:
    disk = MemoryFileSystem()
    disk.open("/x", create=True).pwrite([b"abc"], 0)
    disk.kill()
    assert disk.open("/x").pread(3, 0) == b"abc"
    disk.crash(random.Random(1), torn=False)
    assert not disk.exists("/x")


def test_a_failed_sync_drops_the_dirty_pages() -> None:
    disk = MemoryFileSystem()
    file = disk.open("/x", create=True)
    disk.sync_directory("/")
    file.pwrite([b"abc"], 0)
    disk.faults.fail_syncs = 1
    with pytest.raises(OSError):
        file.datasync()
    file.datasync()
    assert file.pread(3, 0) == b"abc"
    disk.crash(random.Random(1))
    assert disk.read("/x") == b""


def test_full_and_stopped() -> None:
    disk = MemoryFileSystem()
    disk.faults.capacity_bytes = 100
    file = disk.open("/x", create=True)
    file.preallocate(100)
    file.pwrite([b"x" * 100], 0)
    for call in (lambda: file.pwrite([b"x"], 100), lambda: disk.open("/y", create=True).preallocate(1)):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.ENOSPC
    disk.faults.stop_call = disk.faults.calls + 1
    with pytest.raises(PowerLost):
        file.pwrite([b"y" * 100], 0)
    for call in (lambda: file.pwrite([b"z" * 100], 0), file.datasync, lambda: disk.unlink("/x")):
        with pytest.raises(PowerLost):
            call()
    assert disk.read("/x") == b"y" * 100


def test_spares_are_made_on_another_thread(tmp_path: Path) -> None:
    options = WalOptions(segment_bytes=128 << 10, reserve_bytes=64 << 10, spare_segments=2)
    wal, _ = Wal.open(OsFileSystem(), str(tmp_path), IDENTITY, options)
    stop = threading.Event()
    failures: list[BaseException] = []

    def prepare() -> None:
        while not stop.is_set():
            try:
                wal.prepare()
            except BaseException as error:
                failures.append(error)
                return

    thread = threading.Thread(target=prepare)
    thread.start()
    try:
        for first in range(1, 2000, 20):
            wal.write([append(1, first, first + 19, size=3000)])
            wal.sync()
            wal.write([install(1, first + 10)])
            wal.sync()
            wal.release(1, first + 11)
    finally:
        stop.set()
        thread.join()
        wal.close()
    assert failures == []
    assert indexes(Wal.open(OsFileSystem(), str(tmp_path), IDENTITY, options)[1], 1) == span(1992, 2000)
