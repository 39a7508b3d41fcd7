"""The tables of docs/testing.md are kept: what they name exists, and no fault, hazard, mutation or rule is left out."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.mutations import catalogue
from tests.mutations.hazards import HAZARDS, NOT_YET

TESTS = Path(__file__).resolve().parents[1]
DOCUMENT = TESTS.parent / "docs" / "testing.md"

FAULTS = {*range(1, 16), *range(17, 28), 29, 31}
"""Of the list of faults those that the simulator or a unit or crash-point test can bring, and 26 and 29, which real
processes show. Not in it: 16 and 32 to 35, which need real processes or what is not there yet; 28 and 30, which come
with worker sets that change and with moves of blocks."""
BAD_INPUT = {*range(1, 10), *range(11, 19), 22, 23, 24, 26}
_NAMED = re.compile(r"`(test_\w+\.py)::(test_\w+)`")


@cache
def names_in(path: Path) -> frozenset[str]:
    """Names of test functions, found without importing the file."""
    found = ast.walk(ast.parse(path.read_text()))
    return frozenset(one.name for one in found if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef))


@cache
def files() -> dict[str, Path]:
    found = sorted(TESTS.rglob("test_*.py"))
    assert len({path.name for path in found}) == len(found), "names of test files are unique"
    return {path.name: path for path in found}


def exists(file: str, test: str) -> bool:
    return file in files() and test in names_in(files()[file])


def table(title: str) -> list[list[str]]:
    """The cells of the first table below a heading or a line of text, without its head."""
    lines = DOCUMENT.read_text().splitlines()
    (start,) = [number for number, line in enumerate(lines) if line.removeprefix("## ") == title]
    rows: list[list[str]] = []
    for line in lines[start:]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
        elif rows:
            break
    return rows[2:]


def numbered(title: str) -> Iterator[tuple[int, list[str]]]:
    for row in table(title):
        number = re.match(r"\d+", row[0])
        assert number is not None, row
        yield int(number.group()), row[1:]


def test_every_test_that_the_document_names_exists() -> None:
    named = _NAMED.findall(DOCUMENT.read_text())
    assert len(named) > 200
    assert [f"{file}::{test}" for file, test in named if not exists(file, test)] == []


@pytest.mark.parametrize(
    ("title", "rows"),
    [("Faults, and what shows their outcome", FAULTS), ("Bad input, and what shows its answer", BAD_INPUT)],
    ids=["faults", "bad input"],
)
def test_every_row_has_tests(title: str, rows: set[int]) -> None:
    found = dict(numbered(title))
    assert set(found) == rows
    assert [number for number, cells in found.items() if not _NAMED.search(cells[-1])] == []


def test_every_hazard_has_its_mutations_or_a_reason() -> None:
    mutations = {mutation.name: mutation for mutation in catalogue.load_all()}
    shown: set[str] = set()
    numbers: set[int] = set()
    for number, cells in numbered("Known bugs, put back"):
        numbers.add(number)
        if number in NOT_YET:
            assert NOT_YET[number] in cells[0]
            continue
        name = cells[0].strip("`")
        assert name in mutations, f"hazard {number} names {name}"
        assert mutations[name].hazard_number == number
        caught_by = {tuple(test.rpartition("/")[2].split("[")[0].split("::")) for test in mutations[name].caught_by}
        assert set(_NAMED.findall(cells[1])) <= caught_by, name
        assert _NAMED.search(cells[1]), name
        shown.add(name)
    assert numbers == set(HAZARDS)
    assert set(mutations) - shown == set()


def test_every_rule_of_the_papers_is_named() -> None:
    named = {
        (file, test)
        for _, cell, rules in table("Rules of the papers")
        for file in re.findall(r"`(test_\w+\.py)`", cell)
        for test in re.findall(r"`(test_\w+)`", rules)
    }
    kept = {
        (path.name, test)
        for path in sorted((TESTS / "paper").glob("test_*.py"))
        for test in names_in(path)
        if test.startswith("test_")
    }
    assert named == kept


def test_every_test_that_a_mutation_names_exists() -> None:
    named = {test for mutation in catalogue.load_all() for test in mutation.caught_by}
    assert named
    parts = {test: (Path(test.partition("::")[0]).name, re.split(r"::|\[", test)[1:2]) for test in named}
    assert [test for test, (file, name) in sorted(parts.items()) if name and not exists(file, name[0])] == []


def test_a_name_that_is_wrong_is_noticed() -> None:
    assert exists(Path(__file__).name, "test_a_name_that_is_wrong_is_noticed")
    assert not exists(Path(__file__).name, "test_a_name_that_is_missing")
    assert not exists("test_nowhere.py", "test_a_name_that_is_wrong_is_noticed")
