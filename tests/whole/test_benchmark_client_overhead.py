"""The benchmark of what the public API costs runs, and judges what it found."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_it_measures_both_ways(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    flags = ["--model-mb", "1", "--pairs", "3", "--warm-up", "1", "--out", str(out)]
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.client_overhead", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(out.read_text())
    assert found["pairs"] == 3
    assert min(found[f"{way}_{what}"] for way in ("public", "bare") for what in ("ms", "cpu_ms")) > 0
    assert found["figure"]["value"] == found["ratio"] > 0
    assert found["figure"]["met"] == (found["ratio"] <= 1.15)
