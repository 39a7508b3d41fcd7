import pytest

from consensus.core.raft.progress import Progress

NAME = "forgetful_replica_counts"
HAZARD = "23: what a replica holds that may forget it again counts for commit and check-quorum (RULES W7)"
CAUGHT_BY = [
    "tests/unit/core/test_core_rejoin.py::test_what_a_forgetful_replica_holds_commits_nothing_until_it_counts_again",
    "tests/unit/core/test_core_rejoin.py::test_a_forgetful_replica_is_no_sign_of_life_for_check_quorum",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Progress.heard

    def never_forgetful(self: Progress, *, forgetful: bool) -> bool:
        return heard(self, forgetful=False)

    monkeypatch.setattr(Progress, "heard", never_forgetful)
