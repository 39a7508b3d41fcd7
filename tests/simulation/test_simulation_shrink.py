"""A failing seed becomes a smaller case that fails alike, and the command shows it."""

import json

import pytest

from consensus.core.raft.durability import Durability
from consensus.simulation.case import draw_case
from consensus.simulation.run import run_case
from consensus.simulation.shrink import likeness, shrink
from paramserver.cli import main
from paramserver.lab.simulation import campaign


def forget_hard_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """HAZARDS 7: nobody's vote is durable any more."""
    monkeypatch.setattr(Durability, "issue_hard_state", lambda self, number, *, commit_hint: None)
    monkeypatch.setattr(Durability, "hard_state_due", lambda self: False)


def failing_seed() -> int:
    """One in which safety is broken. (Reads that wait for a durable term for ever break progress first elsewhere.)"""
    return next(seed for seed in range(40) if run_case(draw_case(seed)).failure.startswith("Violated: group"))


def test_a_failing_case_shrinks_and_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_hard_state(monkeypatch)
    case = draw_case(failing_seed())
    report = run_case(case)
    shrunk = shrink(case, report, run_case, runs_max=60)
    assert not shrunk.report.ok
    assert likeness(shrunk.report.failure) == likeness(report.failure)
    assert len(shrunk.case.plan) <= max(2, len(case.plan) // 2)
    assert shrunk.case.nodes <= case.nodes
    assert shrunk.case.clients < case.clients
    assert run_case(shrunk.case) == shrunk.report


def test_the_command_shows_failures_and_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forget_hard_state(monkeypatch)
    seed = failing_seed()
    monkeypatch.setattr("consensus.simulation.shrink.RUNS_MAX", 10)
    words = ["sim", "run", "--seeds", f"{seed}:{seed + 1}", "--kind", "ledger", "--json"]
    assert main(words) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["failed_seeds"] == [seed]
    assert json.loads(out)["violations"] == 1
    assert f"seed {seed}: Violated" in err
    assert "shrunk to:" in err
    assert main(["sim", "replay", str(seed), "--kind", "ledger"]) == 1
    out, _ = capsys.readouterr()
    assert not json.loads(out.splitlines()[-1])["ok"]
    assert "starts life" in out


def test_a_campaign_mixes_kinds_and_is_the_same_over_processes() -> None:
    one, _, _ = campaign.campaign(range(4))
    two, _, _ = campaign.campaign(range(4), jobs=2)
    assert one.as_json(0) == two.as_json(0)
    assert one.seeds == 4
    assert [campaign.kind_of(seed) for seed in range(4)] == ["ledger", "churn", "ledger", "training"]


@pytest.mark.parametrize("nodes", [1, 7])
def test_nodes_can_be_given(nodes: int) -> None:
    assert campaign.draw_case(5, nodes=nodes).nodes == nodes
    campaign.run_one(5, nodes=nodes).raise_if_failed()


def test_ctrl_c_stops_with_what_was_done(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run_one = campaign.run_one

    def interrupted_at_2(seed: int, **options: object) -> object:
        if seed == 2:
            raise KeyboardInterrupt
        return run_one(seed)

    monkeypatch.setattr(campaign, "run_one", interrupted_at_2)
    assert main(["sim", "run", "--seeds", "0:100"]) == 130
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["seeds"] == 2
    assert "interrupted after 2 of 100 seeds" in err
