"""`paramserver demo`: the demo of `paramserver.lab.demo`, shown.

With --json the last line of standard output is one object with the figures; what people read goes to standard error
then.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from paramserver.cli import codes, flags
from paramserver.cli.codes import CommandError
from paramserver.cli.flags import Flag
from paramserver.cli.show import Facts, Screen, box, screen

if TYPE_CHECKING:
    from paramserver.lab.cluster import Cluster
    from paramserver.lab.demo import DemoOptions, DemoOutcome, Progress
    from paramserver.lab.verdict import FaultFigure, RunResult

DESCRIPTION = """\
Start three servers and two workers on this machine and train a network on handwritten digits. In the middle the leader
of a data group and a worker are killed with kill -9. Then the same seed is trained without a fault, and every weight
on every replica is compared, bit by bit."""
EPILOG = (
    "exit code 1: accuracy too low, an update lost or applied twice, bits that differ, or a run that proves nothing\n"
)
FLAGS = (
    Flag("--model", "the network: mlp or cnn", flags.choice("mlp", "cnn"), "mlp", "NAME"),
    Flag("--steps", "steps of training", flags.integer(5, 1_000_000), 600, "N"),
    Flag("--margin", "steps that must lie before and after each fault", flags.integer(1, 100_000), 100, "N"),
    Flag("--seed", "of weights and batches", flags.integer(0, 2**31 - 1), 1, "N"),
    Flag("--codec", "of gradients, of weights that come back, and of sums in the log: fp32, bf16 or fp16",
         flags.choice(*flags.CODECS), "fp32", "NAME"),
    Flag("--accuracy-min", "held-out accuracy to reach", flags.number(0, 1), 0.95, "FRACTION"),
    Flag("--timeout", "seconds for each of the two runs", flags.number(1, 3600), 120.0, "SECONDS"),
    Flag("--folder", "keep logs, records and data folders here (new or empty)", flags.text_value, None, "DIR"),
    Flag("--json", "the last line of standard output is one JSON object"),
    Flag("--plain", "plain lines even on a terminal"),
)  # fmt: skip
NAMES = {"kill_leader": "server {node} (a leader) killed", "kill_worker": "worker {node} killed"}


def run(values: flags.Values, problems: list[str], tamper: Callable[[RunResult], RunResult] | None = None) -> int:
    """`tamper`: see `paramserver.lab.demo.run_demo`."""
    from paramserver.lab.demo import run_demo
    from paramserver.lab.errors import LabError

    options = options_of(values, problems)
    flags.raise_problems(problems, "demo")
    stream = sys.stderr if values["json"] else sys.stdout
    with screen(stream, plain=values["plain"]) as shown:
        try:
            outcome = run_demo(options, DemoScreen(shown), tamper)
        except LabError as error:
            raise CommandError(error.cause, " | ".join(error.hint.splitlines())) from error
    return tell(outcome, stream, plain=values["plain"], as_json=values["json"])


def options_of(values: flags.Values, problems: list[str]) -> DemoOptions:
    """Adds to `problems` what is wrong with the options taken together."""
    from importlib.util import find_spec

    from paramserver.lab.demo import DemoOptions

    folder = Path(values["folder"]) if values["folder"] else None
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        problems.append(f"--folder {folder}: exists and is not an empty folder")
    options = DemoOptions(
        steps=values["steps"],
        margin=values["margin"],
        seed=values["seed"],
        accuracy_min=values["accuracy_min"],
        timeout_s=values["timeout"],
        folder=folder,
        model=values["model"],
        codec=values["codec"] or "fp32",
    )
    problems += options.validate()
    if find_spec("sklearn") is None:
        problems.append("the digits come with scikit-learn, which is not installed: pip install 'paramserver[demo]'")
    return options


def tell(outcome: DemoOutcome, stream: TextIO, *, plain: bool, as_json: bool) -> int:
    """The verdict for people and, if asked for, for programs. Returns the exit code."""
    verdict = outcome.verdict
    rows = [
        ("accuracy", f"{verdict.accuracy:.2%} on held-out digits"),
        ("steps", f"{verdict.steps}, {verdict.steps_per_s:.1f} steps/s"),
        *((_fault_name(fault), f"workers stalled {_ms(fault.stall_ms)}") for fault in verdict.faults),
        ("acknowledged updates lost", str(verdict.lost)),
        ("updates applied twice", str(verdict.duplicated)),
        ("bit-identical", "yes" if verdict.bit_identical else "no"),
    ]
    rows += [("problem", problem) for problem in verdict.problems]
    if not verdict.passed:
        rows.append(("logs and data", str(outcome.folder)))
    title = "I killed it and nothing happened." if verdict.passed else "The demo failed."
    with contextlib.suppress(BrokenPipeError):  # the exit code tells all the same
        box(title, rows, stream, plain=plain, good=verdict.passed)
        if as_json:
            print(json.dumps(verdict.as_json()), flush=True)
    return codes.OK if verdict.exit_code == 0 else codes.CHECK_FAILED


def _fault_name(fault: FaultFigure) -> str:
    return NAMES.get(fault.kind, fault.kind + " {node}").format(node=fault.node)


def _ms(value: float) -> str:
    if not math.isfinite(value):
        return "for ever"
    return f"{value:.0f} ms" if value < 1000 else f"{value / 1000:.2f} s"


class DemoScreen:
    """A `Reporter` of the lab on a screen."""

    def __init__(self, shown: Screen) -> None:
        self._shown = shown

    def begins(self, run: str, cluster: Cluster) -> None:
        nodes = ", ".join(f"server {node} at {address}" for node, address in cluster.addresses.items())
        self._shown.event(f"{run}: {nodes}; 2 workers", strong=True)

    def progress(self, progress: Progress) -> None:
        notes = [f"server {node} is dead" for node in progress.down]
        if progress.waiting:
            notes.append(f"waiting: {progress.waiting}")
        facts = Facts(
            title=progress.run,
            step=progress.step,
            steps=progress.steps,
            loss=progress.loss,
            accuracy=progress.accuracy,
            steps_per_s=progress.steps_per_s,
            leaders=progress.leaders,
            notes=notes,
        )
        self._shown.update(facts)

    def event(self, run: str, text: str) -> None:
        self._shown.event(f"{run}, {text}", strong="kill" in text)

    def ended(self, run: str, result: RunResult) -> None:
        ends = [record.end for record in result.records if record.end is not None]
        digests = ", ".join(sorted({end.digest for end in ends})) or "none"
        self._shown.event(f"{run}: ended, model digest {digests}", strong=True)
