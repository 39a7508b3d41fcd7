"""`paramserver chaos run`: a slice of 45 s on real processes, and Ctrl-C in the middle. Nothing depends on how fast the
machine is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from paramserver.lab.chaos.result import from_json
from paramserver.lab.chaos.suites import SLICE

COMMAND = (sys.executable, "-m", "paramserver", "chaos", "run", "--suite", "slice")
RUN_S = 170.0


def started(folder: Path) -> list[str]:
    """Command lines of processes that have to do with the folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            line = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if str(folder) in line:
            found.append(line)
    return found


@pytest.mark.timeout(180)
def test_the_slice_loses_doubles_and_hangs_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        [*COMMAND, "--seed", "1", "--json", "--out", str(out)],
        capture_output=True, text=True, timeout=RUN_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    last = json.loads(done.stdout.splitlines()[-1])
    assert set(last) == {
        "faults", "invalid", "lost", "duplicated", "stale_reads", "not_identical", "hangs", "stall_ms",
    }  # fmt: skip
    assert {name: last[name] for name in last if name != "stall_ms"} == {
        "faults": len(SLICE), "invalid": 0, "lost": 0, "duplicated": 0, "stale_reads": 0, "not_identical": 0,
        "hangs": 0,
    }  # fmt: skip
    assert set(last["stall_ms"]) >= set(SLICE)
    assert set(last["stall_ms"]["kill_leader"]) == {"p50", "p99", "max", "n"}
    result = from_json(json.loads((out / "chaos.json").read_text()))
    assert result.passed
    assert all(one.steps.before and one.steps.after and one.commits.after for one in result.faults)
    assert {mark.kind for mark in result.timeline.marks} == set(SLICE)
    assert {worker.load for worker in result.timeline.workers} == {"digits", "counting"}
    assert "| kill_leader | 1 |" in (out / "chaos.md").read_text()
    left = {path.name for path in out.iterdir()}
    assert left - {"chaos.html"} == {"chaos.json", "chaos.md"}, (
        "the page needs a plotting library; nothing else is left"
    )
    assert started(tmp_path) == []


@pytest.mark.timeout(120)
def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    running = subprocess.Popen(
        COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert running.stdout is not None
    assert running.stdout.readline().startswith("stage processes: 3 servers")
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=100)
    assert running.returncode == 130, said
    assert said.strip().splitlines()[-1] == "interrupted"
    assert list(tmp_path.iterdir()) == []
    assert started(tmp_path) == []
