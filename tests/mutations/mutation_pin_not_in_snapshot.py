"""A replica that was filled by a snapshot knows of no pin, and lets go of what it promised to keep."""

from dataclasses import replace

import pytest

from paramserver.shard import snapshots
from paramserver.shard.steps import Steps
from paramserver.v1 import paramserver_pb2 as pb

NAME = "pin_not_in_snapshot"
HAZARD = "9: in the form of a pin that is kept apart from the state that it binds (R4)"
CAUGHT_BY = ["tests/unit/shard/test_shard_pins.py::test_a_snapshot_holds_what_is_pinned"]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    to_proto = snapshots._steps_to_proto

    def without_pin(steps: Steps) -> pb.ShardSteps:
        return to_proto(replace(steps, pin=None))

    monkeypatch.setattr(snapshots, "_steps_to_proto", without_pin)
