"""Where the time goes: CPU seconds by thread from /proc, and py-spy's frames in them.

Threads of gRPC have names of their own; Python's have them only inside, so py-spy says which is which.
"""

from __future__ import annotations

import os
import re
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


class Threads:
    """CPU seconds of the threads of `processes` (name -> pid) since it was made."""

    def __init__(self, processes: Mapping[str, int]) -> None:
        self._processes = processes
        self._names = {name: thread_names(pid) for name, pid in processes.items()}
        self._before = {name: thread_cpu_s(pid) for name, pid in processes.items()}

    def since(self, moved_gb: float) -> dict[str, list[str]]:
        """A line a thread, busiest first: CPU seconds per GB pushed and pulled."""
        lines = {}
        for process, pid in self._processes.items():
            spent: Counter[str] = Counter()
            for thread, (kernel_name, seconds) in thread_cpu_s(pid).items():
                name = self._names[process].get(thread) or kernel_name
                spent[name] += seconds - self._before[process].get(thread, ("", 0.0))[1]
            per_gb = [(seconds / moved_gb, name) for name, seconds in spent.most_common() if moved_gb]
            lines[process] = [f"{seconds:.2f}  {name}" for seconds, name in per_gb if seconds >= 0.01]
        return lines


def thread_names(pid: int) -> dict[str, str]:
    line = [py_spy(), "dump", "--nonblocking", "--pid", str(pid)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=30, check=False)
    return {match[1]: match[2] for match in re.finditer(r'^Thread (\d+) \(.*?\): "([^"]+)"', done.stdout, re.MULTILINE)}


def thread_cpu_s(pid: int) -> dict[str, tuple[str, float]]:
    """Thread -> (its name in the kernel, CPU seconds so far)."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        text = (task / "stat").read_text()
        fields = text[text.rfind(")") + 2 :].split()
        seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        found[task.name] = (text[text.find("(") + 1 : text.rfind(")")], seconds)
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
