"""A server's start on a folder whose log is torn or damaged: it starts, and says in its own log what it found."""

import logging
import os
from pathlib import Path

import pytest

from consensus.storage.records import Kind, find_headers
from consensus.storage.segments import segment_numbers, segment_path
from paramserver.config import NodeConfig
from paramserver.disk import Disk
from tests.storage.logs import append


def start(config: NodeConfig) -> Disk:
    """Whatever happens to the process later: the lock goes with it."""
    disk = Disk.open(config)
    disk.lock.release()
    return disk


def written(tmp_path: Path) -> tuple[NodeConfig, str, list[int]]:
    """A folder whose server was killed; the segment that it wrote last, and where each entry's payload lies in it."""
    config = NodeConfig(node=1, members={1: "127.0.0.1:7001"}, data_dir=str(tmp_path / "data"), segment_bytes=1 << 20)
    disk = start(config)
    for index in range(1, 6):
        disk.wal.write([append(1, index, index, size=500)])
        disk.wal.sync()
    folder = f"{config.data_dir}/wal"
    for number in segment_numbers(disk.wal._filesystem, folder):
        path = segment_path(folder, number)
        found = [one for one in find_headers(Path(path).read_bytes(), 0, number) if one.kind is Kind.ENTRY]
        if found:
            return config, path, [one.payload_offset for one in found]
    raise AssertionError("nothing was written")


def harm(path: str, offset: int) -> None:
    with open(path, "r+b") as file:
        os.pwrite(file.fileno(), b"\xff\xff", offset)


def test_a_torn_tail_is_discarded_and_said_and_the_server_starts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """FAULTS 6."""
    config, path, entries = written(tmp_path)
    harm(path, entries[-1])
    with caplog.at_level(logging.WARNING):
        disk = start(config)
    assert [entry.index for entry in disk.recovery.groups[1].entries] == [1, 2, 3, 4]
    assert "discarded a torn tail of" in caplog.text
    assert not disk.recovery.damage


def test_damage_is_said_and_the_server_starts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """FAULTS 7."""
    config, path, entries = written(tmp_path)
    harm(path, entries[1])
    with caplog.at_level(logging.WARNING):
        disk = start(config)
    assert disk.recovery.groups[1].forgetful
    assert f"segment {int(Path(path).stem, 16)} offset" in caplog.text
    assert "group 1: " in caplog.text
    assert "it neither votes nor serves until its group has filled it again" in caplog.text
    assert caplog.text.count("until its group has filled it again") == 1, "said twice"
    assert "nothing that counts was lost" not in caplog.text


def test_damage_that_costs_nothing_is_said_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config, path, entries = written(tmp_path)
    harm(path, entries[1] // 4096 * 4096)  # the header of its batch, whose records are all whole
    with caplog.at_level(logging.WARNING):
        disk = start(config)
    assert [entry.index for entry in disk.recovery.groups[1].entries] == [1, 2, 3, 4, 5]
    assert "nothing that counts was lost with it" in caplog.text
