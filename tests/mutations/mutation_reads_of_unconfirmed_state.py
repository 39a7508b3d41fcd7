"""What a replica holds is served as the newest, unasked: a leader that was deposed and does not know it, or a follower
that lags, gives old weights."""

import pytest

from paramserver.rpc.freshness import Confirmation
from paramserver.rpc.pull import Puller, Wanted

NAME = "reads_of_unconfirmed_state"
HAZARD = "15: a process paused past the election timeout and resumed answers stale reads"
CAUGHT_BY = [
    "tests/unit/rpc/test_rpc_reads.py::test_a_linearizable_pull_serves_nothing_before_it_is_confirmed",
    "tests/simulation/test_simulation_system.py::test_reads_that_must_be_new_are_answered_and_miss_nothing",
]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    async def confirmed(self: Puller, wanted: Wanted, known: Confirmation | None, deadline: float) -> None:
        return None

    monkeypatch.setattr(Puller, "_confirmed", confirmed)
