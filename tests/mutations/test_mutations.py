"""Each known bug, put back, makes a named test fail."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.mutations import catalogue
from tests.mutations.catalogue import Mutation

ROOT = Path(__file__).resolve().parents[2]
MUTATIONS = catalogue.load_all()
# Hazards that must have a mutation. 41 is its second half: a restarted worker resets the model.
REQUIRED = {1, 2, 4, 5, 7, 9, 11, 22, 30, 31, 34, 35, 36, 37, 40, 41}


def pytest_run(*arguments: str, seconds: float) -> subprocess.CompletedProcess[str]:
    # Inside pytest-xdist the child must not take itself for one of its workers, nor take options meant for us.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )


def test_required_hazards_have_a_mutation() -> None:
    assert not REQUIRED - {mutation.hazard_number for mutation in MUTATIONS}


def test_names_are_unique() -> None:
    assert [name for name, count in Counter(mutation.name for mutation in MUTATIONS).items() if count > 1] == []


def test_named_tests_exist() -> None:
    assert [mutation.name for mutation in MUTATIONS if not mutation.caught_by] == []
    nodes = sorted({node for mutation in MUTATIONS for node in mutation.caught_by})
    done = pytest_run("--collect-only", *nodes, seconds=60)
    assert done.returncode == 0, done.stdout


@pytest.mark.timeout(130)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_mutation_is_caught(mutation: Mutation) -> None:
    done = pytest_run("-x", "--mutation", mutation.name, *mutation.caught_by, seconds=120)
    # 1 says that tests ran and failed; a mutation that breaks collection or setting up proves nothing.
    assert done.returncode == 1, f"exit code {done.returncode}, wanted 1\n{done.stdout}"
    assert re.search(r"^FAILED |\b\d+ failed\b", done.stdout, re.MULTILINE), done.stdout
