"""The table of docs/faults.md that says which entry of the suites runs which fault is kept."""

from __future__ import annotations

import re
from pathlib import Path

from paramserver.lab.chaos.kinds import all_kinds
from paramserver.lab.chaos.plan import parse
from paramserver.lab.chaos.suites import SUITES

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "faults.md"
ON_REAL_PROCESSES = {1, 2, 3, 7, *range(10, 14), *range(15, 20), *range(21, 24), 26, 27, 28, 29, 31, 32}
"""Rows of the list of faults that real processes have to show (C), without 30 and 33 to 35, which wait for what they
test."""


def rows() -> dict[int, tuple[set[str], str]]:
    """Row -> kinds named for it, and what else is said."""
    text = DOCUMENT.read_text()
    table = text[text.index("| of FAULTS |") :].split("\n\n")[0].splitlines()[2:]
    found = {}
    for line in table:
        number, kinds, more = (cell.strip() for cell in line.strip("|").split("|"))
        found[int(number)] = (set(re.findall(r"`(\w+)`", kinds)), more)
    return found


def test_every_fault_of_real_processes_is_run_by_an_entry_or_says_why_not() -> None:
    assert set(rows()) >= ON_REAL_PROCESSES
    for number, (kinds, more) in rows().items():
        assert kinds or more, f"row {number}: neither run nor a reason"
        assert kinds <= {entry.kind for entry in SUITES["full"].faults}, f"row {number}"
        assert all(not all_kinds()[kind].why_not for kind in kinds), f"row {number}"


def test_kinds_and_table_name_the_same_rows() -> None:
    for name, kind in all_kinds().items():
        named = {number for number, (kinds, _) in rows().items() if name in kinds}
        assert named == (set() if kind.why_not else set(kind.rows)), name


def test_the_plan_that_is_shown_is_one() -> None:
    import tomllib

    (shown,) = re.findall(r"```toml\n(.*?)```", DOCUMENT.read_text(), re.S)
    assert [entry.kind for entry in parse(tomllib.loads(shown)).faults] == ["kill_leader", "delay"]
