"""The heap is asked for in huge pages, and asking takes no memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from paramserver.wire import hugepages

USED_MB = 200
PROGRAM = f"""
from paramserver.wire.allocator import keep_memory
import re

def look():
    flags, huge = "", 0
    inside = False
    for line in open("/proc/self/smaps"):
        if re.match("[0-9a-f]+-", line):
            inside = "[heap]" in line
        elif inside and line.startswith("VmFlags:"):
            flags += line
        elif inside and line.startswith("AnonHugePages:"):
            huge += int(line.split()[1])
    resident = [line for line in open("/proc/self/status") if line.startswith("VmRSS")][0].split()[1]
    return " hg" in flags, huge >> 10, int(resident) >> 10

before = look()
said = "huge pages" in keep_memory()
asked = look()
blocks = [b"x" * (1 << 20) for _ in range({USED_MB})]
used = look()
print(said, asked[0], asked[2] - before[2], used[1], used[2] - asked[2])
"""


def test_asking_takes_no_memory_and_what_is_used_lies_in_huge_pages() -> None:
    root = str(Path(hugepages.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "PARAMSERVER_MALLOC": "keep"}
    environment.pop("GLIBC_TUNABLES", None)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, timeout=60, check=True
    )
    said, asked, for_asking, huge, for_using = done.stdout.split()
    assert said == asked
    assert int(for_asking) < 20
    assert USED_MB - 1 <= int(for_using) < USED_MB + 20
    allowed = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    given = allowed.exists() and "[never]" not in allowed.read_text()
    assert (int(huge) > USED_MB // 2) == (given and asked == "True")
