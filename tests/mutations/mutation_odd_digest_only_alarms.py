"""A majority has another digest, and the odd replica is only talked about."""

import pytest

from paramserver.shard.digests import Verdict
from paramserver.shard.soundness import Soundness

NAME = "odd_digest_only_alarms"
HAZARD = "23: damage that is noticed and not acted upon: here in memory (RULES D1, FAULTS 31)"
CAUGHT_BY = [
    "tests/unit/shard/test_shard_soundness.py::test_the_odd_one_of_three_serves_nothing_until_it_is_rebuilt",
    "tests/simulation/test_simulation_diverging.py::test_a_wrong_follower_is_rebuilt_and_training_has_the_same_bits",
]


def only_alarm(self: Soundness, verdict: Verdict) -> None:
    self._alarm(f"a majority of the replicas has another {verdict.names()}")


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Soundness, "_judged", only_alarm)
