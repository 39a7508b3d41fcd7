"""Each known bug, put back, makes a named test fail. A slice of them here; `make mutants` runs all."""

from collections import Counter

import pytest

from tests.mutations import catalogue
from tests.mutations.catalogue import Mutation
from tests.mutations.hazards import HAZARDS, NOT_YET
from tests.mutations.runner import judge, named_tests, pytest_run

MUTATIONS = catalogue.load_all()
SLICE = MUTATIONS[::6]


def test_every_hazard_has_a_mutation() -> None:
    numbers = {mutation.hazard_number for mutation in MUTATIONS}
    assert sorted(set(HAZARDS) - numbers - set(NOT_YET)) == []
    assert sorted(numbers & set(NOT_YET)) == [], "no excuse is needed any more"


def test_names_are_unique() -> None:
    assert [name for name, count in Counter(mutation.name for mutation in MUTATIONS).items() if count > 1] == []


def test_named_tests_exist() -> None:
    assert [mutation.name for mutation in MUTATIONS if not mutation.caught_by] == []
    done = pytest_run("--collect-only", *named_tests(MUTATIONS), seconds=60)
    assert done.returncode == 0, done.stdout


@pytest.mark.timeout(200)
@pytest.mark.parametrize("mutation", SLICE, ids=lambda mutation: mutation.name)
def test_mutation_is_caught(mutation: Mutation) -> None:
    verdict = judge(mutation)
    assert verdict.caught_by, verdict.output
