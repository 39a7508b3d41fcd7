"""Decisions are numbered, each number once, and a page's heading has the number of its file."""

import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "adr"


def test_each_decision_has_a_number_of_its_own() -> None:
    names = sorted(page.name for page in FOLDER.glob("*.md"))
    numbers = [int(name.split("-")[0]) for name in names]
    assert len(numbers) == len(set(numbers))
    for name in names:
        heading = (FOLDER / name).read_text().splitlines()[0]
        assert re.match(rf"# {int(name.split('-')[0])}\. \S", heading), f"{name} begins with {heading!r}"
