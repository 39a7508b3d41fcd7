"""Control messages travel over the bulk connection, behind payload."""

import pytest

from consensus.transport.interface import Channel
from consensus.transport.peer import PeerLink
from consensus.transport.queues import SendQueue

NAME = "control_over_bulk"
HAZARD = "30: heartbeats stuck behind a large entry start elections"
CAUGHT_BY = [
    "tests/unit/transport/test_grpc_transport.py::test_heartbeats_do_not_wait_behind_payload",
    "tests/unit/transport/test_grpc_cluster.py::test_a_held_bulk_connection_starts_no_election",
    "tests/unit/transport/test_grpc_cluster.py::test_votes_go_on_while_bulk_connections_are_held",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    def queue_for(self: PeerLink, channel: Channel) -> SendQueue:
        return self._queues[Channel.BULK]

    monkeypatch.setattr(PeerLink, "queue_for", queue_for)
