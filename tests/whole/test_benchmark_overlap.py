"""The benchmark of overlap runs, and judges what it found."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_it_measures_all_ways(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    flags = ["--model-mb", "1", "--layers", "4", "--rounds", "3", "--warm-up", "1", "--out", str(out)]
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.overlap", *flags], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(out.read_text())
    assert found["rounds"] == 3
    assert found["compute_ms"] >= 1.5 * found["communication_ms"] > 0
    assert min(found["overlap_ms"], found["behind_ms"]) > 0
    assert found["figure"]["value"] == found["ratio"] > 0
    assert found["figure"]["met"] == (found["ratio"] <= 1.15)
