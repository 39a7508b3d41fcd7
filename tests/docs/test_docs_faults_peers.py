"""The pages show the stored results of the peers' drill, and nothing else."""

from pathlib import Path

import pytest

from benchmarks.faults.peers import report

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results"


@pytest.mark.parametrize(("page", "mark"), [("docs/faults.md", report.LONG[0]), ("README.md", report.SHORT[0])])
def test_the_tables_of_the_drill_are_those_of_the_stored_results(page: str, mark: str) -> None:
    text = (ROOT / page).read_text()
    results = report.loaded(RESULTS / "faults_peers.json"), report.loaded(RESULTS / "faults_ours.json")
    assert mark in text
    assert report.written(text, *results) == text, "see tools/bench_faults.sh: python -m benchmarks.faults.peers.report"
