"""A run as a whole, its stages scripted: what is kept of one that broke down, and what a soak makes of any plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paramserver.lab.chaos import run as chaos_run
from paramserver.lab.chaos.nemesis import StageRun
from paramserver.lab.chaos.plan import Plan, StagePlan
from paramserver.lab.chaos.run import ChaosOptions, run_chaos
from paramserver.lab.chaos.suites import SUITES


def options(folder: Path, **changes: Any) -> ChaosOptions:
    given: dict[str, Any] = {"plan": SUITES["quick"], "seed": 1, "command": "so", "replay": "so", "folder": folder}
    return ChaosOptions(**{**given, **changes})


@pytest.mark.parametrize(("error", "kept"), [(KeyboardInterrupt, False), (RuntimeError, True)])
def test_a_defect_keeps_the_logs_and_ctrl_c_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], *, kept: bool
) -> None:
    def broken(_plan: Plan, _stage: StagePlan, _faults: object, *, folder: Path, **_how: object) -> StageRun:
        folder.mkdir()
        raise error

    monkeypatch.setattr(chaos_run, "run_stage", broken)
    told: list[str] = []
    with pytest.raises(error):
        run_chaos(options(tmp_path), told.append)
    assert (tmp_path / "stage-0").exists() is kept
    assert told == [f"logs and data folders: {tmp_path}"] * kept


def test_a_soak_mixes_a_plan_that_has_clusters_of_its_own_for_some_kinds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []

    def stage(plan: Plan, one: StagePlan, faults: Any, *, folder: Path, **_how: object) -> StageRun:
        drawn.extend(next(faults).kind.name for _ in range(3))
        return StageRun(one, 0.0, folder)

    monkeypatch.setattr(chaos_run, "run_stage", stage)
    assert not SUITES["quick"].together
    result = run_chaos(options(tmp_path, minutes=1.0), lambda _: None)
    assert len(drawn) == 3
    assert result.plan["together"] is True
    assert len(result.stages) == 1
