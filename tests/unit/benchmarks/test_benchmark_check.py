"""The check of ratios against the baseline fails when one falls by more than a fifth, and only then."""

import json
from pathlib import Path

import pytest

from benchmarks import check


def result(path: Path, ratios: dict[str, float], **more: object) -> Path:
    path.write_text(json.dumps({"ratios": ratios, **more}))
    return path


@pytest.mark.parametrize(
    ("name", "before", "now", "code"),
    [
        ("fp32_64mb_w2_vs_torch-rpc", 1.0, 1.0, 0),
        ("fp32_64mb_w2_vs_torch-rpc", 1.0, 0.81, 0),
        ("fp32_64mb_w2_vs_torch-rpc", 1.0, 0.79, check.FELL),
        ("fp32_64mb_w2_vs_torch-rpc", 1.0, 0.0, check.FELL),
        ("fp32_64mb_w2_vs_torch-rpc", 1.0, float("nan"), check.FELL),
        ("fp32_64mb_w2_vs_torch-rpc", 1.0, 3.0, 0),
        ("time_tensors10000_vs_1_buffer", 1.0, 1.24, 0),
        ("time_tensors10000_vs_1_buffer", 1.0, 1.26, check.FELL),
        ("time_tensors10000_vs_1_buffer", 1.0, 0.5, 0),
        ("cpu_64mb_w1_vs_floor", 2.0, 2.6, check.FELL),
        ("memory_adam_256mb_peak_vs_allowed", 0.8, 1.2, check.FELL),
    ],
)
def test_a_ratio_that_gets_worse_by_more_than_a_fifth_fails(
    tmp_path: Path, name: str, before: float, now: float, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline = result(tmp_path / "baseline.json", {name: before, "untouched": 1.0})
    measured = result(tmp_path / "result.json", {name: now, "untouched": 1.0, "new": 9.0})
    assert check.main([str(measured), "--baseline", str(baseline)]) == code
    said = capsys.readouterr().out
    assert (f"FELL  {name}" in said) == (code == check.FELL)
    assert "ok    untouched" in said


def test_what_was_not_measured_is_named_and_fails_only_if_all_is_wanted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline = result(tmp_path / "baseline.json", {"one": 1.0, "two": 1.0})
    measured = result(tmp_path / "result.json", {"one": 1.0})
    assert check.main([str(measured), "--baseline", str(baseline)]) == 0
    assert "not measured: two" in capsys.readouterr().out
    assert check.main([str(measured), "--baseline", str(baseline), "--all"]) == check.FELL


def test_a_result_with_nothing_in_common_is_no_success(tmp_path: Path) -> None:
    baseline = result(tmp_path / "baseline.json", {"one": 1.0})
    measured = result(tmp_path / "result.json", {"other": 1.0})
    assert check.main([str(measured), "--baseline", str(baseline)]) == check.NOTHING


@pytest.mark.parametrize("text", ["", "[]", '{"rows": []}', '{"ratios": {"one": "fast"}}'])
def test_what_is_no_result_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(SystemExit, match=r"result\.json: expected a benchmark's JSON"):
        check.read([path])


def test_a_quick_run_is_refused(tmp_path: Path) -> None:
    path = result(tmp_path / "result.json", {"one": 1.0}, quick=True)
    with pytest.raises(SystemExit, match="--quick"):
        check.read([path])


def test_the_written_baseline_is_what_was_measured_and_what_was_known(tmp_path: Path) -> None:
    baseline = result(tmp_path / "baseline.json", {"one": 1.0, "two": 2.0})
    measured = result(tmp_path / "result.json", {"two": 3.0}, machine={"cores": 2})
    assert check.main([str(measured), "--baseline", str(baseline), "--write"]) == 0
    assert json.loads(baseline.read_text()) == {"machine": {"cores": 2}, "ratios": {"one": 1.0, "two": 3.0}}


def test_the_stored_baseline_can_be_read() -> None:
    ratios = check.read([check.BASELINE])
    assert ratios
    assert all(value > 0 for value in ratios.values())
