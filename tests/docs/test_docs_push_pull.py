"""The page of benchmarks shows the stored results of push and pull, and nothing else."""

from pathlib import Path

from benchmarks.pushpull import report

ROOT = Path(__file__).parents[2]


def test_the_documentation_shows_the_stored_results_and_nothing_else() -> None:
    text, folder = (ROOT / "docs/benchmarks.md").read_text(), ROOT / "docs/benchmarks"
    assert report.spliced(text, report.page(report.load(folder), folder)) == text, (
        "python -m benchmarks.pushpull.report docs/benchmarks --write docs/benchmarks.md"
    )
