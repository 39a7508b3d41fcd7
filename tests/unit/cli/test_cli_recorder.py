"""A record is read as it was written, also across a kill."""

from pathlib import Path

import pytest

from paramserver.cli.codes import CommandError
from paramserver.cli.recorder import Recorder
from paramserver.lab import records


def test_round_trip_across_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "record"
    one = Recorder(path)
    one.write("start", rank=0, pid=1, first_step=0)
    one.write("step", step=0, loss=1.0, accuracy=None)
    with path.open("ab") as file:
        file.write(b'{"event": "st')  # killed in the middle of a line
    two = Recorder(path)
    two.write("wait", why="group 1 has no leader")
    two.write("step", step=1, loss=0.5, accuracy=0.9)
    two.write("end", accuracy=0.9, digest="ab")
    two.close()
    record = records.read(path, 0)
    assert [type(event).__name__ for event in record.events] == ["Start", "Step", "Wait", "Step", "End"]
    assert record.last_step == 1
    assert record.end is not None
    assert record.end.digest == "ab"


def test_no_file_no_record() -> None:
    Recorder(None).write("step", step=0)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="--record"):
        Recorder(tmp_path / "missing" / "record")
