import pytest

from consensus.core.raft.rejoin import Rejoin

NAME = "mark_ends_without_refill"
HAZARD = "23: a replica that lost entries counts again before it holds all that its leader had (RULES W7)"
CAUGHT_BY = [
    "tests/unit/core/test_core_rejoin.py::test_it_counts_again_once_it_holds_what_the_leader_named",
]


def as_soon_as_it_hears(self: Rejoin) -> bool:
    return self._state.forgetful and not self._clearing and self._state.leader != 0


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rejoin, "due", as_soon_as_it_hears)
