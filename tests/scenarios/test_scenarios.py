"""Each script prints what it says. `pytest tests/scenarios --rewrite-scenarios` writes what is printed now into them:
read the difference before it is committed."""

from pathlib import Path

import pytest

from tests.scenarios.script import replay, scripts


@pytest.mark.parametrize("path", scripts(), ids=lambda path: path.stem)
def test_scenario(path: Path, request: pytest.FixtureRequest) -> None:
    text = path.read_text(encoding="utf-8")
    printed = replay(text)
    if request.config.getoption("--rewrite-scenarios"):
        path.write_text(printed, encoding="utf-8")
        return
    assert printed.splitlines() == text.splitlines()


def test_there_are_scenarios() -> None:
    assert len(scripts()) >= 10


def test_a_wrong_expectation_is_noticed() -> None:
    assert replay("> group 1 2 3\n    something else\n") != "> group 1 2 3\n    something else\n"
