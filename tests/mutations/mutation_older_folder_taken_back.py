"""Nobody remembers which lives of a peer were met: a folder that was put back to an older copy takes part again."""

import pytest

from consensus.transport.grpc.introduction import Introductions

NAME = "older_folder_taken_back"
HAZARD = "7: term and vote go back with an older copy of the folder"
CAUGHT_BY = [
    "tests/unit/transport/test_grpc_transport.py::test_a_folder_that_was_put_back_is_refused_with_the_repair",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Introductions, "_meet", lambda self, node, uuid, incarnation, life: "")
