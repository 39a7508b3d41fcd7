"""Where the time goes: py-spy on running processes, and the top of what it saw."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

TOP = 5
SHARE_MIN = 0.02


def py_spy() -> str:
    found = shutil.which("py-spy") or str(Path(sys.executable).with_name("py-spy"))
    if not Path(found).exists():
        raise SystemExit("--profile needs py-spy: pip install 'paramserver[dev]'")
    return found


def record(processes: Mapping[str, int], seconds: int, folder: Path) -> dict[str, list[str]]:
    """Sample all `processes` (name -> pid) at once; collapsed stacks lie in `folder`/NAME.txt. Returns for each
    what `top` says. Threads that wait are not counted."""
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
    """A line a thread, busiest first: its share of the process, and its top frames by own time."""
    own: dict[str, Counter[str]] = {}
    for line in collapsed.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        own.setdefault(thread_name(frames[0]), Counter())[frames[-1]] += int(count)
    total = sum(frames.total() for frames in own.values()) or 1
    lines = []
    for thread, frames in sorted(own.items(), key=lambda item: -item[1].total()):
        share = frames.total() / total
        if share >= SHARE_MIN:
            named = ", ".join(f"{frame} {count / total:.1%}" for frame, count in frames.most_common(TOP))
            lines.append(f"{share:6.1%}  {thread}: {named}")
    return lines


def thread_name(frame: str) -> str:
    """`thread (0x7f..): name` without the number."""
    return frame.split(": ", 1)[1] if frame.startswith("thread (") and ": " in frame else "?"
