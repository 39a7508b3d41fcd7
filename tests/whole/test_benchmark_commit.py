"""The benchmark of commits works: its servers, its clients and its probe, with no word about how fast."""

import json
from pathlib import Path

import pytest

from benchmarks import commit
from benchmarks.commits import peer_etcd, report, wire
from benchmarks.commits.cluster import ROOT, Servers, load
from benchmarks.commits.report import MIB


def test_its_quick_slice_measures_commits_kills_transfers_and_idle_groups_and_judges_every_target(
    tmp_path: Path,
) -> None:
    out = tmp_path / "commit.json"
    result = commit.run(commit.parsed(["--quick", "--parts", "ours,kills,transfers,idle", "--out", str(out)]))
    rows = {(row["mode"], row["bytes"], row["in_flight"]): row for row in result["rows"]}
    assert set(rows) == {
        ("stream", 100, 1),
        ("stream", 100, 32),
        ("stream", MIB, 16),
        ("unary", 100, 1),
        ("unary", 100, 32),
    }
    for row in rows.values():
        assert row["operations"] > 0
        assert row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"] <= row["worst_ms"]
    assert result["kills"]["count"] == 2
    assert result["transfers"]["count"] + len(result["transfers"]["refused"]) == 2
    assert len(result["idle"]["cpu_percent_of_a_core"]) == 3
    measured = {target["name"]: target for target in result["targets"] if target["value"] is not None}
    assert {"kills_median_ms", "kills_worst_ms", "transfers_median_ms", "idle_percent"} <= set(measured)
    assert all(target["met"] in (True, False) for target in measured.values())
    assert report.table(json.loads(json.dumps(result)))


def test_all_nodes_apply_what_was_acknowledged(tmp_path: Path) -> None:
    with Servers(tmp_path, groups=2) as servers:
        servers.await_leaders(2)
        leader = servers.leader()
        found = load("stream", servers.addresses[leader], size=100, inflight=8, seconds=0.3)
        servers.await_equal()
        counts = {node: servers.count(node) for node in servers.nodes}
        assert len(set(counts.values())) == 1
        assert counts[leader] >= found["operations"] > 0


def test_targets_are_judged_by_ratio_and_by_figure() -> None:
    def row(system: str, size: int, inflight: int, p50_ms: float | None, rate: float) -> dict[str, object]:
        named = {"system": system, "mode": "stream", "durability": "fsync", "bytes": size, "in_flight": inflight}
        return {**named, "ops_per_s": rate, "mb_per_s": rate, "p50_ms": p50_ms, "p90_ms": p50_ms, "p99_ms": p50_ms}

    rows = [
        *(row("paramserver", 100, 1, 1.2, 800), row("etcd", 100, 1, 1.0, 900)),
        *(row("paramserver", 100, 32, 4.0, 500), row("etcd", 100, 32, 4.0, 1000)),
        *(row("paramserver", MIB, 16, 4.0, 300), row("pysyncobj", MIB, 16, None, 0.0)),
    ]
    found = {
        one["name"]: one for one in report.targets({"rows": rows, "kills": {"median_ms": 25.0, "worst_ms": 500.0}})
    }
    assert (found["etcd_100b_1_p50"]["value"], found["etcd_100b_1_p50"]["met"]) == (1.2, True)
    assert found["etcd_100b_1_p50"]["aim_met"] is False
    assert (found["etcd_100b_32_ops"]["value"], found["etcd_100b_32_ops"]["met"]) == (0.5, False)
    assert (found["pysyncobj_1mib_mb_s"]["value"], found["pysyncobj_1mib_mb_s"]["met"]) == (None, True)
    assert found["kills_median_ms"]["aim_met"] is True
    assert found["kills_worst_ms"]["met"] is False
    assert found["idle_percent"]["met"] is None


def test_the_documentation_shows_the_stored_result_and_nothing_else() -> None:
    text, stored = (ROOT / "docs/benchmarks.md").read_text(), ROOT / "benchmarks/results/commit.json"
    block = report.table(json.loads(stored.read_text())) if stored.exists() else report.NO_RESULT
    assert report.spliced(text, block) == text, "python -m benchmarks.commits.report writes it"


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
