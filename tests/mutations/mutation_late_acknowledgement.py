import pytest

from consensus.core.interface import Message
from consensus.core.raft.replication import Replication

NAME = "late_acknowledgement"
HAZARD = "5: late acknowledgements of an earlier term are counted in the new one"
CAUGHT_BY = ["tests/unit/core/test_core_replication.py::test_late_acknowledgement_of_an_earlier_term_does_not_count"]


def always(self: Replication, message: Message) -> bool:
    return True


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Replication, "counts", always)
