"""Claims about faults are judged from what chaos runs wrote down; what was not measured is not met."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.faults.claims import judged, main
from paramserver.lab.chaos.result import to_json
from tests.unit.lab.chaos_results import GROWTH, fault, result


def row(name: str, *runs: object) -> dict[str, object]:
    (found,) = [one for one in judged(runs) if one["name"] == name]  # type: ignore[arg-type]
    return found


def test_each_claim_is_judged_from_its_figures() -> None:
    storm = fault(kind="transfer_storm", parameters={"stalls_ms": [10.0, 20.0, 90.0]})
    follower = fault(kind="kill_follower", target="node 2, leads nothing", step_p99_ratio=1.7)
    run = result(
        faults=(fault(stall_ms=60.0), fault(stall_ms=500.0), storm, follower), growth=(replace(GROWTH, node=2),)
    )
    assert (row("kill_leader_p50", run)["value"], row("kill_leader_p50", run)["met"]) == (60.0, True)
    assert (row("kill_leader_max", run)["value"], row("kill_leader_max", run)["met"]) == (500.0, False)
    assert (row("transfer_p50", run)["value"], row("transfer_p50", run)["met"]) == (20.0, True)
    assert (row("follower_p99_ratio", run)["value"], row("follower_p99_ratio", run)["met"]) == (1.7, False)
    assert row("pause_leader_p95", run)["met"] is None
    assert row("faults", run, run)["value"] == 8.0
    assert row("rss_mb_per_minute", run)["value"] == 0.1
    assert row("problems", replace(run, problems=("server 1 ended with 1, not 74",)))["met"] is False
    assert row("lost", replace(run, summary=replace(run.summary, lost=1)))["met"] is False


def test_a_claim_that_is_not_met_is_an_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "chaos.json"
    path.write_text(json.dumps(to_json(result())))
    assert main([str(path)]) == 1, "one fault is not five hundred"
    shown = capsys.readouterr()
    assert "| faults injected | 500 |" in shown.err
    assert json.loads(shown.out)["benchmark"] == "faults"
