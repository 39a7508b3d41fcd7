"""Configuration that can't be (FAULTS, bad input 22): exit 2, all problems at once, nothing half-started."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from paramserver.config import NodeConfig
from paramserver.lab.ports import ReservedPorts

GOOD = {"node": 1, "members": {1: "127.0.0.1:7001", 2: "127.0.0.1:7002", 3: "127.0.0.1:7003"}, "data_dir": "data"}


def problems(**fields: object) -> list[str]:
    return NodeConfig(**{**GOOD, **fields}).validate()  # type: ignore[arg-type]


def test_a_sound_configuration() -> None:
    assert problems() == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"node": 4}, ["node 4", "1, 2, 3"]),
        ({"node": 0}, ["node is 0"]),
        ({"members": {}}, ["members is missing"]),
        ({"members": {1: "127.0.0.1"}}, ["host:port"]),
        ({"members": {1: "127.0.0.1:0"}}, ["host:port"]),
        ({"members": {1: "127.0.0.1:99999"}}, ["host:port"]),
        ({"members": {1: "127.0.0.1:7001", 2: "127.0.0.1:7001"}}, ["same address"]),
        ({"members": {n: f"127.0.0.1:{7000 + n}" for n in range(1, 66)}}, ["65 nodes", "64"]),
        ({"listen": "nonsense"}, ["listen", "host:port"]),
        ({"listen": "0.0.0.0:7001"}, ["not loopback", "--allow-remote"]),
        ({"peer_listen": "127.0.0.1"}, ["peer_listen is '127.0.0.1'", "host:port"]),
        ({"peer_listen": "0.0.0.0:7101"}, ["0.0.0.0:7101 is not loopback", "--allow-remote"]),
        ({"dial": {"127.0.0.1:7002": "nowhere"}}, ["dial is 'nowhere'", "host:port"]),
        ({"data_dir": ""}, ["data_dir"]),
        ({"heartbeat_ms": 300}, ["heartbeat_ms (300)", "election_timeout_ms (300)"]),
        ({"heartbeat_ms": 0}, ["heartbeat_ms"]),
        ({"lease_ms": 5}, ["lease_ms is 5"]),
        ({"segment_bytes": 1000}, ["segment_bytes"]),
        ({"token": "x" * 1000}, ["token"]),
        ({"groups": -1}, ["groups is -1", "1 to 256"]),
        ({"groups": 257}, ["groups is 257", "1 to 256"]),
        ({"zone": "a b"}, ["zone", "letters, digits", "a b"]),
        ({"zone": "x" * 64}, ["zone", "1 to 63"]),
        ({"durability": "none"}, ["durability is 'none'", "expected 'fsync' or 'replicated'"]),
    ],
)
def test_what_is_wrong_is_named_with_what_was_expected(fields: dict[str, object], words: list[str]) -> None:
    found = "\n".join(problems(**fields))
    assert all(word in found for word in words), found


def test_all_problems_at_once() -> None:
    found = problems(node=9, data_dir="", heartbeat_ms=900, lease_ms=1, listen="x")
    assert len(found) == 5


def test_times_that_fit_scale_what_depends_on_them() -> None:
    config = NodeConfig(**{**GOOD, "heartbeat_ms": 500, "election_timeout_ms": 3000})  # type: ignore[arg-type]
    assert config.validate() == []
    raft = config.runtime_options().raft
    assert (raft.election_spread_ms, raft.place_delay_ms) == (1500, 1500)
    assert problems(heartbeat_ms=5, election_timeout_ms=30) == []


def test_a_remote_address_that_is_allowed() -> None:
    assert problems(listen="0.0.0.0:7001", allow_remote=True) == []


# --- what is only found on the way


def serve(folder: Path, *, node: int, members: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """A server that is expected to end by itself."""
    command = [sys.executable, "-m", "paramserver", "server", "--node", str(node), "--members", members]
    command += ["--data-dir", str(folder), "--segment-bytes", str(1 << 20), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


@pytest.fixture
def address() -> str:
    ports = ReservedPorts(1)
    ports.close()
    return f"127.0.0.1:{ports.numbers[0]}"


def owned(folder: Path, address: str, *, node: int = 1) -> None:
    """A folder that a node has used before."""
    from consensus.storage.filesystem import OsFileSystem
    from consensus.storage.identity import load_or_create
    from paramserver.catalogue.bootstrap import cluster_id

    load_or_create(OsFileSystem(), str(folder), cluster_id({node: address}, ""), node)


def refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    last = result.stderr.strip().splitlines()[-1]
    assert all(word in last for word in words), result.stderr
    assert "Traceback" not in result.stderr


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        taken = f"127.0.0.1:{listener.getsockname()[1]}"
        refused(serve(tmp_path / "data", node=1, members=f"1={taken}"), "cannot bind", taken)
    assert not (tmp_path / "data").exists()


def test_a_folder_of_another_node(tmp_path: Path, address: str) -> None:
    owned(tmp_path, address, node=2)
    refused(serve(tmp_path, node=1, members=f"1={address}"), "belongs to node 2", "its own folder")


def test_a_folder_of_another_cluster(tmp_path: Path, address: str) -> None:
    owned(tmp_path, address)
    result = serve(tmp_path, node=1, members=f"1={address}", flags=("--token", "another"))
    refused(result, "belongs to node 1 of cluster", "same members")


def test_a_folder_of_a_newer_format(tmp_path: Path, address: str) -> None:
    from consensus.storage.checksum import crc32c

    owned(tmp_path, address)
    path = tmp_path / "identity"
    content = json.loads(path.read_bytes().splitlines()[0])
    line = json.dumps({**content, "format": 99}, sort_keys=True).encode() + b"\n"
    path.write_bytes(line + f"{crc32c(line):08x}\n".encode())
    refused(serve(tmp_path, node=1, members=f"1={address}"), "format 99")


def test_a_folder_in_use(tmp_path: Path, address: str) -> None:
    from consensus.storage.filesystem import DirectoryLock

    lock = DirectoryLock(str(tmp_path))
    refused(serve(tmp_path, node=1, members=f"1={address}"), "in use by another process")
    lock.release()


def test_a_folder_that_cannot_be_made(tmp_path: Path, address: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    refused(serve(tmp_path / "file", node=1, members=f"1={address}"), "data folder")
