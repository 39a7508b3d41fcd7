"""The demo with fewer steps, and the proof that it would notice one wrong weight."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paramserver.cli import main
from paramserver.cli.demo import tell
from paramserver.lab import demo
from paramserver.lab.demo import DemoOptions, DemoOutcome
from paramserver.lab.verdict import RunResult

OPTIONS = DemoOptions(steps=200, margin=35, accuracy_min=0.9, timeout_s=50.0)
KEYS = ["accuracy", "steps", "steps_per_s", "faults", "lost", "duplicated", "bit_identical"]


@dataclass(frozen=True)
class Ran:
    code: int
    stdout: str
    stderr: str
    outcome: DemoOutcome | None


@pytest.fixture(scope="module")
def ran() -> Ran:
    """`paramserver demo --json` once, for all tests here."""
    return run_it()


def run_it(*more: str) -> Ran:
    outcomes: list[DemoOutcome] = []
    run_demo = demo.run_demo

    def keep(*arguments: Any) -> DemoOutcome:
        outcomes.append(run_demo(*arguments))
        return outcomes[-1]

    words = ["demo", "--json", "--steps", str(OPTIONS.steps), "--margin", str(OPTIONS.margin)]
    words += ["--accuracy-min", str(OPTIONS.accuracy_min), "--timeout", str(OPTIONS.timeout_s), *more]
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "run_demo", keep)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(words)
    return Ran(code, out.getvalue(), err.getvalue(), outcomes[0] if outcomes else None)


def test_the_demo_passes(ran: Ran) -> None:
    assert ran.code == 0, ran.stderr
    result = json.loads(ran.stdout.splitlines()[-1])
    assert list(result) == KEYS
    assert result["steps"] == OPTIONS.steps
    assert result["accuracy"] >= OPTIONS.accuracy_min
    assert (result["lost"], result["duplicated"], result["bit_identical"]) == (0, 0, True)
    assert [fault["kind"] for fault in result["faults"]] == ["kill_leader", "kill_worker"]
    assert all(list(fault) == ["kind", "node", "stall_ms"] and fault["stall_ms"] >= 0 for fault in result["faults"])
    assert "bit-identical: yes" in ran.stderr
    assert "kill -9 of server" in ran.stderr


def test_with_bf16_on_the_way_and_in_the_log_the_bits_are_the_same_too(ran: Ran) -> None:
    """The same as those of the run without faults, and others than those of the demo in fp32."""
    lossy = run_it("--codec", "bf16")
    assert lossy.code == 0, lossy.stderr
    result = json.loads(lossy.stdout.splitlines()[-1])
    assert (result["lost"], result["duplicated"], result["bit_identical"]) == (0, 0, True)
    assert result["accuracy"] >= OPTIONS.accuracy_min
    assert lossy.outcome is not None
    assert ran.outcome is not None
    ends = [
        {record.end.digest for record in one.reference.records if record.end} for one in (lossy.outcome, ran.outcome)
    ]
    assert len(ends[0]) == len(ends[1]) == 1
    assert ends[0] != ends[1]
    for key, copies in lossy.outcome.reference.final.blocks.items():
        weights = np.frombuffer(next(iter(copies.values())).weights, np.uint32)
        other = next(iter(ran.outcome.reference.final.blocks[key].values())).weights
        assert weights.tobytes() != other
        assert (weights & 0xFFFF).any(), "servers keep fp32"


def flip_one_bit(result: RunResult) -> RunResult:
    """The lowest bit of one weight on one replica."""
    blocks = {key: dict(copies) for key, copies in result.final.blocks.items()}
    key = next(iter(blocks))
    node = max(blocks[key])
    copy = blocks[key][node]
    blocks[key][node] = replace(copy, weights=bytes([copy.weights[0] ^ 1]) + copy.weights[1:])
    return replace(result, final=replace(result.final, blocks=blocks))


def test_one_wrong_weight_fails_it(ran: Ran) -> None:
    assert ran.outcome is not None, ran.stderr
    outcome = demo.conclude(OPTIONS, ran.outcome.faulted, ran.outcome.reference, ran.outcome.folder, flip_one_bit)
    stream = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = tell(outcome, stream, plain=True, as_json=True)
    assert code == 1
    assert "bit-identical: no" in stream.getvalue()
    assert "1 of" in stream.getvalue()
    assert json.loads(out.getvalue())["bit_identical"] is False


def test_the_command_judges_with_what_it_is_given(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, from the command line down: only the two training runs are taken from the recording."""
    assert ran.outcome is not None, ran.stderr
    recorded = iter((flip_one_bit(ran.outcome.faulted), ran.outcome.reference))
    monkeypatch.setattr(demo, "train", lambda *_: next(recorded))
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        words = ["demo", "--json", "--steps", str(OPTIONS.steps), "--margin", str(OPTIONS.margin)]
        code = main([*words, "--accuracy-min", str(OPTIONS.accuracy_min)])
    assert code == 1
    assert "bit-identical: no" in err.getvalue()
    assert json.loads(out.getvalue().splitlines()[-1])["bit_identical"] is False


@pytest.mark.usefixtures("interruptible")
def test_interrupted_it_leaves_nothing_behind(tmp_path: Path) -> None:
    """Ctrl-C in the middle: 130, no process, no folder."""
    command = [sys.executable, "-m", "paramserver", "demo"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert " 2 workers" in process.stdout.readline()  # the servers are ready
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []
    assert not any(str(tmp_path) in text_of(path) for path in Path("/proc").glob("[0-9]*/cmdline"))


def text_of(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # ended meanwhile
        return ""
