"""The benchmark of commits works: its servers, its clients and its probe, with no word about how fast."""

import time
from pathlib import Path

import pytest

from benchmarks import commit
from benchmarks.commits import changes, peer_etcd, wire
from benchmarks.commits.cluster import Servers, load


def test_commands_are_committed_by_streams_and_calls_and_a_killed_leader_is_replaced(tmp_path: Path) -> None:
    with Servers(tmp_path, groups=2) as servers:
        servers.await_leaders(2)
        leader = servers.leader()
        for mode in ("stream", "unary"):
            found = load(mode, servers.addresses[leader], size=100, inflight=8, seconds=0.3)
            assert found["operations"] > 0
            assert found["p50_ms"] <= found["p99_ms"]
        servers.await_equal()
        counts = {node: servers.count(node) for node in servers.nodes}
        assert len(set(counts.values())) == 1
        with changes.Watched(tmp_path, servers) as watched:
            killed_s = servers.nodes[leader].kill()
            first_s, node = watched.await_commits(killed_s, 1, but=leader)[0]
            assert node != leader
            assert killed_s < first_s <= time.monotonic()


def test_messages_of_the_benchmark_survive_the_wire() -> None:
    payloads = [b"one", b"", b"three"]
    data = wire.encode_commands(7, payloads, [1, 2, 3])
    assert [(number, bytes(one), crc) for number, one, crc in wire.decode_commands(data)] == [
        (7, b"one", 1),
        (8, b"", 2),
        (9, b"three", 3),
    ]


def test_a_peer_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_etcd, "program", lambda: None)
    assert commit.etcd(tmp_path, None) == {"missing": {"etcd": peer_etcd.INSTALL}}  # type: ignore[arg-type]


def test_a_put_of_etcd_has_its_key_and_value_in_fields_1_and_2() -> None:
    request = peer_etcd.put_request(b"key", bytes(300))
    assert peer_etcd.fields_of(request) == {1: b"key", 2: bytes(300)}
