"""A leader takes a proposal without an answer for lost, and proposes what is sent again once more; apply takes both."""

import pytest

from paramserver.shard.gathering import Gathering
from paramserver.shard.machine import ShardMachine, Verdict
from paramserver.shard.streams import PushStream
from paramserver.wire.frames import PushFrame

NAME = "retry_applies_twice"
HAZARD = "31: a retry after a timeout applies twice"
CAUGHT_BY = ["tests/simulation/test_simulation_training.py::test_a_step_sent_again_counts_once"]

judge = Gathering._judge


def assume_lost(self: Gathering, stream: PushStream, frame: PushFrame) -> bool:
    index = self.info.index_of(frame.block)
    round_ = self._rounds[index] if index is not None else None
    if round_ is not None and round_.proposed and stream not in round_.waiting:
        self._kill(round_)
    return judge(self, stream, frame)


def take_both(self: ShardMachine, version: int, step: int) -> Verdict:
    return Verdict.TAKE if step <= version else Verdict.AHEAD


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gathering, "_judge", assume_lost)
    monkeypatch.setattr(ShardMachine, "_verdict", take_both)
