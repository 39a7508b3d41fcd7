"""Finds and loads the mutations that lie in this folder."""

import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

FOLDER = Path(__file__).parent


class Install(Protocol):
    def __call__(self, monkeypatch: pytest.MonkeyPatch) -> None: ...


@dataclass(frozen=True)
class Mutation:
    name: str
    hazard: str
    caught_by: tuple[str, ...]
    install: Install

    @property
    def hazard_number(self) -> int:
        match = re.search(r"\d+", self.hazard)
        if match is None:
            raise ValueError(f"mutation {self.name}: HAZARD {self.hazard!r} names no number")
        return int(match.group())


def load_all() -> list[Mutation]:
    mutations = []
    for path in sorted(FOLDER.glob("mutation_*.py")):
        module = importlib.import_module(f"tests.mutations.{path.stem}")
        mutations.append(Mutation(module.NAME, module.HAZARD, tuple(module.CAUGHT_BY), module.install))
    return mutations


def find(name: str) -> Mutation:
    mutations = {mutation.name: mutation for mutation in load_all()}
    if name not in mutations:
        raise KeyError(f"no mutation {name!r}; there are: {', '.join(mutations) or 'none'}")
    return mutations[name]
