"""Nobody looks whether a step was applied before: a leader takes what is sent again for the next step, and apply takes
any."""

from dataclasses import replace

import pytest

from paramserver.shard.gathering import Gathering
from paramserver.shard.machine import ShardMachine, Verdict
from paramserver.shard.streams import PushStream
from paramserver.wire.frames import PushFrame

NAME = "steps_not_told_apart"
HAZARD = "31: a retry after a timeout applies twice"
CAUGHT_BY = [
    "tests/unit/shard/test_shard_leader.py::test_a_step_survives_any_number_of_leaders_bit_by_bit",
    "tests/unit/shard/test_shard_machine.py::test_a_command_that_stands_in_the_log_twice_counts_once",
]

judge = Gathering._judge


def as_the_next(self: Gathering, stream: PushStream, frame: PushFrame) -> bool:
    index = self.info.index_of(frame.block)
    if index is not None and frame.step < self._versions[index]:
        frame = replace(frame, step=self._versions[index])
    return judge(self, stream, frame)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gathering, "_judge", as_the_next)
    monkeypatch.setattr(ShardMachine, "_verdict", lambda self, version, step: Verdict.TAKE)
