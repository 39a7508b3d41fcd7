"""`paramserver chaos`: what is wrong on its command line is said at once, and nothing is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from paramserver.cli import chaos, codes, entry
from paramserver.lab.chaos import run as chaos_run
from paramserver.lab.chaos.result import ChaosResult
from tests.unit.lab.chaos_results import result


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert entry.run(["chaos", *words]) == codes.USAGE
    said = capsys.readouterr()
    assert said.out == ""
    return said.err.splitlines()


def test_all_problems_of_the_flags_at_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "there").write_text("")
    lines = refused(
        capsys, "run", "--suite", "quik", "--seed", "-1", "--out", str(tmp_path), "--kinds", "kil_leader,delay",
        "--repetition", "3",
    )  # fmt: skip
    said = "\n".join(lines)
    assert "--suite 'quik': expected one of slice, quick, full, soak; did you mean quick?" in said
    assert "--seed '-1': expected a whole number" in said
    assert f"--out {tmp_path}: exists and is not an empty folder" in said
    assert "'kil_leader' is no kind of fault; did you mean kill_leader?" in said
    assert "unknown flag --repetition; did you mean --repetitions?" in said
    assert lines[-1].startswith("hint: paramserver chaos run --help")


def test_a_plan_is_checked_before_anything_is_started(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text('version = 1\nmargins = 3\n[[faults]]\nkind = "lose"\n')
    lines = refused(capsys, "run", "--plan", str(plan), "--suite", "quick")
    assert "--suite and --plan: choose one" in lines[0]
    assert "unknown key 'margins'; did you mean margin?" in lines[1]
    assert "faults[0].kind: 'lose' is no kind of fault; did you mean loss?" in lines[2]
    assert "No such file" in refused(capsys, "soak", "--plan", str(tmp_path / "none.json"))[0]


def test_what_cannot_be_run_at_all_is_refused_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert "rolling_upgrade can't be run: there is no tagged version" in refused(
        capsys, "run", "--kinds", "rolling_upgrade"
    )[0]  # fmt: skip


@pytest.mark.parametrize("sound", [True, False])
def test_the_exit_code_says_whether_a_check_failed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, sound: bool
) -> None:
    asked = []

    def scripted(options: chaos_run.ChaosOptions, tell: object) -> ChaosResult:
        asked.append(options)
        return result(replay=options.replay) if sound else result(replay=options.replay, problems=("so",), kept="/x")

    monkeypatch.setattr(chaos_run, "run_chaos", scripted)
    words = ["run", "--kinds", "kill_leader", "--repetitions", "2", "--seed", "7", "--json", "--out", str(tmp_path)]
    assert entry.run(["chaos", *words]) == (codes.OK if sound else codes.CHECK_FAILED)
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 1
    assert said.out.startswith('{"faults": 1,')
    assert asked[0].replay == "paramserver chaos run --kinds kill_leader --repetitions 2 --seed 7"
    assert (asked[0].replay in said.err.splitlines()[-1]) is not sound
    assert ("logs and data folders: /x" in said.err) is not sound
    assert (tmp_path / "chaos.json").exists()
    assert chaos.RUN.name == "chaos run"


def test_a_folder_that_cannot_be_made_is_said_and_nothing_is_started(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    lines = refused(capsys, "run", "--kinds", "kill_leader", "--out", str(tmp_path / "file" / "out"))
    assert "--out" in lines[0]
    assert "Not a directory" in lines[0]
    assert "a folder that can be made" in lines[1]
