import pytest

from consensus.core.raft import commit

NAME = "commit_older_terms"
HAZARD = "1: entries of an older term are committed by counting replicas (figure 8)"
CAUGHT_BY = [
    "tests/paper/test_paper_raft.py::test_5_4_2_entries_of_an_earlier_term_are_not_committed_by_counting",
    "tests/paper/test_paper_raft.py::test_5_4_2_figure_8_step_by_step",
]


def any_term(entry_term: int | None, *, leader_term: int) -> bool:
    return entry_term is not None


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "may_commit_by_counting", any_term)
