"""Fault injection: what each fault does to one server's disk and clock, who may turn it on, and that it is off."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from consensus.storage.errors import StorageFull
from consensus.storage.filesystem import OsFileSystem
from paramserver import directory
from paramserver.config import NodeConfig
from paramserver.injection import clock as clocks
from paramserver.injection import control
from paramserver.injection.clock import ClockFaults
from paramserver.injection.control import Injection
from paramserver.injection.disk import DiskFaults, FaultyFileSystem
from paramserver.lab.errors import LabError
from paramserver.lab.faults import NodeFaults
from paramserver.v1 import paramserver_pb2 as pb

HOUR_S = 3600.0


@pytest.fixture
def faults() -> DiskFaults:
    return DiskFaults()


@pytest.fixture
def disk(faults: DiskFaults) -> FaultyFileSystem:
    return FaultyFileSystem(OsFileSystem(), faults)


@pytest.fixture
def injection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Injection]:
    """Its clock would replace that of the tests."""
    monkeypatch.setattr(ClockFaults, "install", lambda self: None)
    made = Injection(str(tmp_path / "faults.socket"))
    yield made
    made.close()


def test_without_faults_a_file_is_what_it_was_told(disk: FaultyFileSystem, tmp_path: Path) -> None:
    disk.mkdir(str(tmp_path / "a" / "b"))
    path = str(tmp_path / "a" / "b" / "file")
    file = disk.open(path, create=True)
    file.preallocate(8)
    file.pwrite([b"one", memoryview(b"two")], 1)
    file.datasync()
    disk.sync_directory(str(tmp_path / "a" / "b"))
    disk.rename(path, path + "2")
    assert (file.size(), file.pread(100, 0)) == (8, b"\0onetwo\0")
    file.close()
    assert disk.listdir(str(tmp_path / "a" / "b")) == ["file2"]
    assert disk.exists(path + "2")
    disk.unlink(path + "2")
    assert disk.boot_id() == OsFileSystem().boot_id()


def test_a_slow_disk_takes_so_long_for_each_write_and_sync_and_heals_at_once(
    disk: FaultyFileSystem, faults: DiskFaults, tmp_path: Path
) -> None:
    file = disk.open(str(tmp_path / "file"), create=True)
    faults.set(slow_ms=30)
    for write in (lambda: file.pwrite([b"x"], 0), file.datasync, lambda: disk.sync_directory(str(tmp_path))):
        started_s = time.monotonic()
        write()
        assert time.monotonic() - started_s >= 0.03
    assert faults.counts["slow"] == 3
    assert file.pread(1, 0) == b"x"
    faults.set(slow_ms=60_000)
    waiting = threading.Thread(target=file.datasync)
    waiting.start()
    latest_s = time.monotonic() + 5
    while faults.counts["slow"] < 4:
        assert time.monotonic() < latest_s, "the call does not wait"
        time.sleep(0.001)
    faults.set(slow_ms=0)
    waiting.join(5)
    assert not waiting.is_alive()
    file.close()


def test_a_full_disk_refuses_what_allocates_and_nothing_else(
    disk: FaultyFileSystem, faults: DiskFaults, tmp_path: Path
) -> None:
    file = disk.open(str(tmp_path / "file"), create=True)
    file.preallocate(10)
    faults.set(full=True)
    file.pwrite([b"inside"], 4)
    file.datasync()
    for grow in (
        lambda: file.pwrite([b"over"], 8),
        lambda: file.preallocate(11),
        lambda: disk.open(str(tmp_path / "new"), create=True),
        lambda: disk.mkdir(str(tmp_path / "folder")),
    ):
        with pytest.raises(OSError) as caught:
            grow()
        assert caught.value.errno == errno.ENOSPC
    assert (file.size(), os.listdir(tmp_path)) == (10, ["file"])
    disk.rename(str(tmp_path / "file"), str(tmp_path / "other"))
    disk.open(str(tmp_path / "other"), create=True).close()
    assert faults.counts["full"] == 4
    faults.set(full=False)
    file.pwrite([b"over"], 8)
    file.close()


def test_a_directory_that_finds_no_space_leaves_the_one_before(
    disk: FaultyFileSystem, faults: DiskFaults, tmp_path: Path
) -> None:
    directory.save(disk, str(tmp_path), pb.Directory(version=1))
    faults.set(full=True)
    with pytest.raises(StorageFull, match="no space"):
        directory.save(disk, str(tmp_path), pb.Directory(version=2))
    assert directory.load(disk, str(tmp_path)) == pb.Directory(version=1)
    faults.set(full=False)
    directory.save(disk, str(tmp_path), pb.Directory(version=3))
    assert directory.load(disk, str(tmp_path)) == pb.Directory(version=3)


def test_one_sync_fails_and_no_more(disk: FaultyFileSystem, faults: DiskFaults, tmp_path: Path) -> None:
    file = disk.open(str(tmp_path / "file"), create=True)
    faults.set(sync_errors=1)
    with pytest.raises(OSError) as caught:
        file.datasync()
    assert caught.value.errno == errno.EIO
    file.datasync()
    file.close()


def test_the_wall_clock_jumps_and_drifts_and_heals(monkeypatch: pytest.MonkeyPatch) -> None:
    real_ns = [10**18]
    monkeypatch.setattr(clocks, "_real_ns", lambda: real_ns[0])
    clock = ClockFaults()
    clock.set(jump_s=2 * HOUR_S)
    assert clock.time_ns() == 10**18 + 7200 * 10**9
    clock.set(drift=0.5)
    real_ns[0] += 10 * 10**9
    assert clock.time_ns() - real_ns[0] == 7205 * 10**9
    clock.set(drift=0.0, jump_s=-4 * HOUR_S)
    assert clock.time_ns() - real_ns[0] == -7195 * 10**9
    clock.heal()
    assert clock.time() == real_ns[0] / 1e9


def test_installed_it_is_the_clock_of_the_process_but_not_of_grpc_and_not_the_monotonic_one(tmp_path: Path) -> None:
    script = """
import grpc.aio._utils, time
from paramserver.injection.clock import ClockFaults
clock, before, monotonic = ClockFaults(), time.time(), time.monotonic()
clock.install()
clock.set(jump_s=7200)
assert 7200 <= time.time() - before < 7260, time.time() - before
assert 7200 <= time.time_ns() / 1e9 - before < 7260
assert grpc.aio._utils.time.time() - before < 60
assert time.monotonic() - monotonic < 60
assert grpc.aio._utils._timeout_to_deadline(1.0) - before < 60
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)


def test_the_harness_turns_faults_on_and_off(injection: Injection, tmp_path: Path) -> None:
    faults = NodeFaults(1, str(tmp_path / "faults.socket"))
    assert (tmp_path / "faults.socket").stat().st_mode & 0o777 == 0o600
    faults.disk(slow_ms=5)
    faults.disk(full=True)
    faults.disk(fsync_error=True)
    faults.clock(jump_s=60, drift=0.1)
    state = faults.state()
    assert (state.slow_ms, state.full, state.sync_errors, state.jump_s, state.drift) == (5, True, 1, 60, 0.1)
    assert "slow_ms 5, full 1, sync_errors 1, jump_s 60, drift 0.1" in injection.alarm()
    faults.heal()
    state = faults.state()
    assert (state.slow_ms, state.full, state.sync_errors, state.jump_s, state.drift) == (0, False, 0, 0, 0)
    assert "for tests only; now: nothing is wrong" in injection.alarm()


def test_a_stall_stops_the_interpreter_or_the_loop_alone(injection: Injection, tmp_path: Path) -> None:
    faults = NodeFaults(1, str(tmp_path / "faults.socket"))
    started_s = time.monotonic()
    faults.stall(0.2)
    latest_s = started_s + 5
    gap_s, seen_s = 0.0, started_s
    while gap_s < 0.15 and seen_s < latest_s:  # this thread stands still meanwhile
        time.sleep(0.001)
        now_s = time.monotonic()
        gap_s, seen_s = max(gap_s, now_s - seen_s), now_s
    assert gap_s >= 0.15

    async def how_long_it_takes() -> float:
        injection.watch(asyncio.get_running_loop())
        started_s = time.monotonic()
        await asyncio.to_thread(faults.stall, 0.2, loop_only=True)
        await asyncio.sleep(0.05)
        return time.monotonic() - started_s

    assert asyncio.run(how_long_it_takes()) >= 0.2


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"op": "melt"}, "op is 'melt'; expected disk, clock, stall, heal or state"),
        ({"op": "disk", "slow_ms": -1}, "slow_ms is -1; expected a number from 0 to 60000"),
        ({"op": "disk", "full": 1}, "full is 1; expected true or false"),
        ({"op": "disk", "fast": 1}, "fast"),
        ({"op": "clock", "jump_s": "1h"}, "jump_s is '1h'; expected a number"),
        ({"op": "stall", "seconds": 3600, "what": "loop"}, "seconds is 3600; expected a number from 0 to 60"),
        ({"op": "stall", "seconds": 1, "what": "node"}, "what is 'node'; expected 'interpreter' or 'loop'"),
        ({}, "KeyError: 'op'"),
    ],
)
def test_what_cannot_be_is_refused(
    injection: Injection, tmp_path: Path, request_: dict[str, object], words: str
) -> None:
    faults = NodeFaults(1, str(tmp_path / "faults.socket"))
    with pytest.raises(LabError) as caught:
        faults._client.ask(request_)
    assert words in str(caught.value)
    assert faults.state().slow_ms == 0


def test_a_socket_of_an_earlier_life_is_replaced_and_another_file_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClockFaults, "install", lambda self: None)
    path = tmp_path / "faults.socket"
    control._listen(str(path)).close()  # a killed process leaves it
    Injection(str(path)).close()
    assert not path.exists()
    path.write_text("mine")
    with pytest.raises(OSError):
        Injection(str(path))
    assert path.read_text() == "mine"


def test_it_is_off_unless_asked_for_and_refused_where_others_could_reach_it() -> None:
    members = {1: "127.0.0.1:7001"}
    assert NodeConfig(node=1, members=members, data_dir="d").fault_injection == ""
    assert NodeConfig(node=1, members=members, data_dir="d", fault_injection="s").validate() == []
    elsewhere = NodeConfig(
        node=1, members=members, data_dir="d", listen="0.0.0.0:7001", allow_remote=True, fault_injection="s"
    )
    assert elsewhere.validate() == [
        "fault_injection is for tests on one machine, and 0.0.0.0:7001 is not loopback; leave it out"
    ]
    peers = NodeConfig(
        node=1, members=members, data_dir="d", peer_listen="0.0.0.0:7009", allow_remote=True, fault_injection="s"
    )
    assert peers.validate() == [
        "fault_injection is for tests on one machine, and 0.0.0.0:7009 is not loopback; leave it out"
    ]
    (problem,) = NodeConfig(node=1, members=members, data_dir="d", fault_injection="s" * 108).validate()
    assert "108 bytes" in problem
