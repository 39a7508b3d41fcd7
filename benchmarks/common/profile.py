"""Where the time goes: py-spy on running processes, and the top of what it saw."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

TOP = 15


def py_spy() -> str:
    found = shutil.which("py-spy") or str(Path(sys.executable).with_name("py-spy"))
    if not Path(found).exists():
        raise SystemExit("--profile needs py-spy: pip install 'paramserver[dev]'")
    return found


def record(processes: Mapping[str, int], seconds: int, folder: Path) -> dict[str, list[str]]:
    """Sample all `processes` (name -> pid) at once; collapsed stacks lie in `folder`/NAME.txt. Returns for each the top
    frames by own time, as "share function (file:line)". Threads that wait are not counted."""
    folder.mkdir(parents=True, exist_ok=True)
    running = {}
    for name, pid in processes.items():
        out = folder / f"{name.replace(' ', '-')}.txt"
        line = [py_spy(), "record", "--pid", str(pid), "--duration", str(seconds), "--rate", "200", "--threads"]
        line += ["--nonblocking", "--format", "raw", "--output", str(out)]
        running[name] = (out, subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))
    tops = {}
    for name, (out, process) in running.items():
        _, errors = process.communicate(timeout=seconds + 60)
        tops[name] = top(out.read_text()) if out.exists() else [f"no profile: {errors.decode(errors='replace')[-300:]}"]
    return tops


def top(collapsed: str) -> list[str]:
    own: Counter[str] = Counter()
    for line in collapsed.splitlines():
        stack, _, count = line.rpartition(" ")
        own[stack.split(";")[-1]] += int(count)
    total = sum(own.values()) or 1
    return [f"{count / total:6.1%}  {frame}" for frame, count in own.most_common(TOP)]
