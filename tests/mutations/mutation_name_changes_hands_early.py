"""A checkpoint that is being loaded takes the name at once, before its values are there."""

from collections.abc import Iterable

import pytest

from paramserver.catalogue import models
from paramserver.catalogue.state import Model

NAME = "name_changes_hands_early"
HAZARD = "41: first half, in the form of a load: who opens the name gets a model that a dead loader never fills (M1)"
CAUGHT_BY = [
    "tests/unit/catalogue/test_catalogue_models.py::test_a_load_leaves_the_generation_before_alone_until_it_is_open"
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    def newest(found: Iterable[Model], name: str) -> Model | None:
        return max((one for one in found if one.spec.name == name), key=lambda one: one.generation, default=None)

    monkeypatch.setattr(models, "named", newest)
