"""The benchmark of push and pull works: its turns, its suites and its links, with no word about how fast, and without
any peer."""

import json
import time
from pathlib import Path

import pytest

from benchmarks import push_pull
from benchmarks.pushpull import report
from benchmarks.pushpull.case import Case
from benchmarks.pushpull.links import OursThroughLinks
from benchmarks.pushpull.ours import OurOptions
from benchmarks.pushpull.peers import environment, redis


def test_its_quick_slice_measures_ours_beside_one_replica_and_names_peers_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setattr(redis.shutil, "which", lambda _: None)
    environment.interpreter.cache_clear()
    out = tmp_path / "push_pull.json"
    flags = ["--quick", "--workers", "2", "--peers", "torch-rpc,redis", "--out", str(out)]
    try:
        result = push_pull.run(push_pull.parsed(flags))
    finally:
        environment.interpreter.cache_clear()
    rows = {(row["system"], row["replicas"]): row for row in result["rows"]}
    assert set(rows) == {("paramserver", 3), ("paramserver", 1)}
    for row in rows.values():
        assert (row["model_mb"], row["workers"], row["codec"], row["durability"]) == (1, 2, "fp32", "fsync")
        assert row["mb_per_s"] > 0
        assert row["cpu_s_per_gb"] > 0
        assert 0 < row["step_ms"]["p50"] <= row["step_ms"]["p99"]
    assert len(rows["paramserver", 3]["server_cpu_s_per_gb"]) == 3
    assert result["ratios"]["fp32_1mb_w2_replicas3_vs_1"] > 0
    assert result["missing"] == {
        "torch-rpc fp32_1mb_w2": environment.INSTALL,
        "torch-rpc-plain fp32_1mb_w2": environment.INSTALL,
        "redis fp32_1mb_w2": redis.INSTALL,
    }
    assert report.page([json.loads(json.dumps(result))])


def test_the_quick_slice_of_pulls_works() -> None:
    pulls = push_pull.run(push_pull.parsed(["--suite", "pulls", "--quick"]))
    assert pulls["rows"]
    assert all(row["pulls_only"] and row["mb_per_s"] > 0 for row in pulls["rows"])
    assert report.page([pulls])


def test_links_delay_what_goes_between_servers() -> None:
    options = OurOptions(tensors=10, arrays=True, optimizer="adam")
    with OursThroughLinks(Case(model_mb=1, workers=1), options, delay_ms=40.0) as system:
        system.step(2, 60.0)
        began_s = time.monotonic()
        system.step(3, 60.0)
        step_s = (time.monotonic() - began_s) / 3
    assert step_s >= 0.08, "a step needs a round trip between the leader and a follower"
