"""Whose folder this is (RULES I2): made once, durable, never silently made anew."""

import errno
import random

import pytest

from consensus.storage.errors import IdentityMismatch, StorageFailed, UnknownFormat
from consensus.storage.filesystem import DirectoryLock, OsFileSystem
from consensus.storage.identity import NodeIdentity, load_or_create
from consensus.storage.memory import MemoryFileSystem, PowerLost

CLUSTER = b"k" * 16


def load(disk: MemoryFileSystem, cluster: bytes = CLUSTER, node: int = 1, seed: int = 1) -> NodeIdentity:
    return load_or_create(disk, "/data", cluster, node, random_bytes=random.Random(seed).randbytes)


def test_made_once_and_durable() -> None:
    disk = MemoryFileSystem()
    made = load(disk, seed=1)
    assert len(made.uuid) == 16
    assert (made.peers, made.activated) == ({}, False)
    disk.crash(random.Random(1), torn=False)
    again = load(disk, seed=2)
    assert (again.uuid, again.identity().node_uuid, again.identity().cluster) == (made.uuid, made.uuid, CLUSTER)


def test_peers_and_activation_are_durable() -> None:
    disk = MemoryFileSystem()
    identity = load(disk)
    identity.remember_peer(2, b"2" * 16)
    identity.remember_peer(3, b"3" * 16)
    identity.remember_peer(3, b"3" * 16)
    identity.activate()
    identity.activate()
    disk.crash(random.Random(1), torn=False)
    again = load(disk)
    assert again.peers == {2: b"2" * 16, 3: b"3" * 16} == again.identity().peers
    assert again.activated


def test_a_peer_that_could_not_be_written_down_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would be confirmed when it asks again, and forgotten in the next life (RULES I2)."""
    disk = MemoryFileSystem()
    identity = load(disk)

    def full(path: str, *, create: bool = False) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    with monkeypatch.context() as now:
        now.setattr(disk, "open", full)
        with pytest.raises(StorageFailed):
            identity.remember_peer(2, b"2" * 16)
    assert identity.peers == {}
    identity.remember_peer(2, b"2" * 16)
    disk.crash(random.Random(1), torn=False)
    assert load(disk).peers == {2: b"2" * 16}


def test_another_folder_under_a_known_node_is_refused() -> None:
    identity = load(MemoryFileSystem())
    identity.remember_peer(2, b"2" * 16)
    with pytest.raises(IdentityMismatch, match="it was wiped or replaced"):
        identity.remember_peer(2, b"X" * 16)
    with pytest.raises(IdentityMismatch):
        identity.remember_peer(1, b"X" * 16)
    with pytest.raises(IdentityMismatch, match="3 bytes"):
        identity.remember_peer(3, b"abc")
    assert identity.peers == {2: b"2" * 16}


def test_another_owner_is_refused() -> None:
    disk = MemoryFileSystem()
    load(disk)
    with pytest.raises(IdentityMismatch, match="belongs to node 1"):
        load(disk, node=2)
    with pytest.raises(IdentityMismatch, match="start this node on its own folder"):
        load(disk, cluster=b"z" * 16)


def test_damage_is_refused_never_replaced() -> None:
    disk = MemoryFileSystem()
    load(disk).remember_peer(2, b"2" * 16)
    size = len(disk.read("/data/identity"))
    for offset in range(size):
        disk.flip_bit("/data/identity", offset, offset % 8)
        with pytest.raises(IdentityMismatch, match="damaged"):
            load(disk)
        disk.flip_bit("/data/identity", offset, offset % 8)
    load(disk)


def test_a_log_without_identity_is_refused() -> None:
    disk = MemoryFileSystem()
    load(disk)
    disk.mkdir("/data/wal")
    disk.open("/data/wal/0000000000000001.wal", create=True)
    disk.unlink("/data/identity")
    with pytest.raises(IdentityMismatch, match="missing"):
        load(disk)


def test_a_newer_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = MemoryFileSystem()
    monkeypatch.setattr("consensus.storage.identity.FORMAT_VERSION", 2)
    load(disk)
    monkeypatch.undo()
    with pytest.raises(UnknownFormat, match="format 2"):
        load(disk)


def test_lives_only_go_up_and_belong_to_a_folder() -> None:
    disk = MemoryFileSystem()
    identity = load(disk)
    identity.meet(2, b"2" * 16, 3, b"early")
    assert identity.lives == {}, "a folder that is not known is none to remember lives of"
    identity.remember_peer(2, b"2" * 16)
    for incarnation, life in ((3, b"a"), (2, b"b"), (3, b"c")):
        identity.meet(2, b"2" * 16, incarnation, life)
    disk.crash(random.Random(1))
    again = load(disk)
    assert again.lives == {2: (3, b"a")}
    again.replace_peer(2, b"X" * 16)
    again.meet(2, b"2" * 16, 9, b"late")
    assert load(disk).lives == {}


@pytest.mark.parametrize("fault", ["stop", "fail"])
def test_a_crash_at_every_call_keeps_what_was_told(fault: str) -> None:
    for call in range(1, 1000):
        disk = MemoryFileSystem()
        if fault == "stop":
            disk.faults.stop_call = call
        else:
            disk.faults.fail_call = call
        uuid, peers, activated, met = b"", 0, False, 0
        try:
            identity = load(disk, seed=1)
            uuid = identity.uuid
            for node in (2, 3):
                identity.remember_peer(node, bytes([node]) * 16)
                peers = node
            identity.activate()
            activated = True
            for incarnation in (4, 5):
                identity.meet(3, bytes([3]) * 16, incarnation, b"life")
                met = incarnation
        except (PowerLost, StorageFailed):
            pass
        fired = disk.faults.fired
        disk.crash(random.Random(call))
        disk.faults.stop_call = disk.faults.fail_call = 0
        again = load(disk, seed=2)
        assert not uuid or again.uuid == uuid
        assert len(again.peers) >= max(0, peers - 1)
        assert again.activated >= activated
        assert again.lives.get(3, (0, b""))[0] >= met
        if not fired:
            return
    pytest.fail("a run without a fault never came")


def test_two_processes_on_one_folder(tmp_path: object) -> None:
    lock = DirectoryLock(f"{tmp_path}/data")
    with pytest.raises(IdentityMismatch, match="in use by another process"):
        DirectoryLock(f"{tmp_path}/data")
    lock.release()
    lock.release()
    DirectoryLock(f"{tmp_path}/data").release()


def test_on_a_real_disk(tmp_path: object) -> None:
    disk = OsFileSystem()
    made = load_or_create(disk, f"{tmp_path}/a/b", CLUSTER, 3)
    made.remember_peer(1, b"1" * 16)
    again = load_or_create(disk, f"{tmp_path}/a/b", CLUSTER, 3)
    assert (again.uuid, again.peers) == (made.uuid, {1: b"1" * 16})
