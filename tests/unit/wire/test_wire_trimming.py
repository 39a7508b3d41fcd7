"""Free memory stays with the process however many messages are freed, unless it is told otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from paramserver.wire import trimming

FREED_MB = 200
MESSAGES = 30_000
PROGRAM = f"""
from paramserver.wire.allocator import keep_memory
print(keep_memory())
from paramserver.v1 import paramserver_pb2 as pb
blocks = [b"x" * (1 << 20) for _ in range({FREED_MB})]
last = b"y" * 4096  # what is at the end of the heap
del blocks
for _ in range({MESSAGES}):
    pb.PushHeader(block=1)
print([line for line in open("/proc/self/status") if line.startswith("VmRSS")][0].split()[1])
"""


def resident_mb(setting: str) -> int:
    """After the memory was freed, and then many messages."""
    root = str(Path(trimming.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "PARAMSERVER_MALLOC": setting}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, timeout=60, check=True
    )
    assert ("as it is" in done.stdout) == (setting == "default"), done.stdout
    return int(done.stdout.split()[-1]) >> 10


def test_messages_that_are_freed_take_no_memory_along() -> None:
    assert resident_mb("keep") > FREED_MB
    assert resident_mb("default") < FREED_MB // 2


def test_doing_it_again_changes_nothing() -> None:
    program = "from paramserver.wire.trimming import keep_protobuf_from_trimming as keep; print(keep(), keep())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["True", "True"]


def test_what_is_not_as_expected_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "library.so"
    other.write_bytes(b"\x7fELF\x01\x01" + bytes(100))  # of 32 bits
    assert not trimming._redirect(str(other))
    monkeypatch.setitem(sys.modules, "google._upb", None)
    assert not trimming.keep_protobuf_from_trimming()
