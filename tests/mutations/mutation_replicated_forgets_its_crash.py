import pytest

from consensus.storage import lifemark
from consensus.storage.interface import FileSystem

NAME = "replicated_forgets_its_crash"
HAZARD = (
    "23: under durability `replicated` a replica whose machine stopped votes and counts as if it had forgotten nothing "
    "(RULES W7, W8)"
)
CAUGHT_BY = [
    "tests/simulation/test_simulation_replicated.py::test_a_stopped_machine_is_filled_again_before_it_counts",
    "tests/storage/test_life_mark.py::test_a_stopped_machine_may_have_forgotten_and_stays_marked",
]


def nothing_is_forgotten(filesystem: FileSystem, folder: str) -> str:
    return ""


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifemark, "forgotten", nothing_is_forgotten)
