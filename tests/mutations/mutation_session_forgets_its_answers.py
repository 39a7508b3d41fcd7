"""Sessions don't remember what they were answered: a command that is sent again is executed again."""

import pytest

from paramserver.catalogue.sessions import Answer, Session

NAME = "session_forgets_its_answers"
HAZARD = "31: a retry after a timeout applies twice, at group 0"
CAUGHT_BY = [
    "tests/paper/test_paper_sessions.py::test_6_3_a_command_in_the_log_twice_is_executed_once",
    "tests/paper/test_paper_sessions.py::test_6_3_the_state_machine_keeps_the_response_and_gives_it_again",
    "tests/unit/catalogue/test_catalogue_machine.py::test_a_command_sent_again_has_no_second_effect",
]


def remembers_nothing(self: Session, sequence: int) -> Answer | None:
    return None


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "answered", remembers_nothing)
