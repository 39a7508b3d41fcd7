"""`paramserver chaos run|soak`: faults injected into a cluster of real processes on this machine, and what they cost.

Owns the words on the command line, and where results are written. Must not know: faults, verdicts.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from paramserver.cli import codes, flags
from paramserver.cli.codes import CommandError
from paramserver.cli.flags import Flag
from paramserver.cli.shape import Verb
from paramserver.cli.text import escape

if TYPE_CHECKING:
    from paramserver.lab.chaos.plan import Plan
    from paramserver.lab.chaos.result import ChaosResult

SUITE_NAMES = ("slice", "quick", "full", "soak")
SEED = Flag("--seed", "draws targets, times and durations; the same seed, the same plan",
            flags.integer(0, 2**31 - 1), 1, "N")  # fmt: skip
PLAN = Flag("--plan", "a plan in JSON or TOML, in place of a suite (docs/faults.md)", flags.text_value, None, "FILE")
KINDS = Flag("--kinds", "only these kinds of faults, with commas", flags.text_value, None, "NAME,...")
OUT = Flag("--out", "write chaos.json, chaos.md and chaos.html here; logs and data folders lie here while it runs",
           flags.text_value, None, "FOLDER")  # fmt: skip
KEEP = Flag("--keep", "keep logs and data folders when all is well, too")
JSON = Flag("--json", "the last line of standard output is one JSON object; progress goes to standard error")


def _run(values: flags.Values) -> int:
    return _chaos(values, "run")


def _soak(values: flags.Values) -> int:
    return _chaos(values, "soak")


def _check(values: flags.Values, problems: list[str]) -> None:
    from importlib.util import find_spec

    if "suite" in values.given and values["plan"]:
        problems.append("--suite and --plan: choose one")
    out = Path(values["out"]) if values["out"] else None
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        problems.append(f"--out {out}: exists and is not an empty folder")
    if find_spec("sklearn") is None:
        problems.append("the digits come with scikit-learn, which is not installed: pip install 'paramserver[demo]'")
    _plan(values, problems)


def _plan(values: flags.Values, problems: list[str]) -> Plan | None:
    """Adds to `problems` what is wrong with it."""
    from paramserver.lab.chaos.plan import PlanError, load, narrowed, skipped
    from paramserver.lab.chaos.suites import SUITES

    try:
        plan = load(Path(values["plan"])) if values["plan"] else SUITES[values["suite"]]
        kinds = [kind.strip() for kind in (values["kinds"] or "").split(",") if kind.strip()]
        plan = narrowed(plan, kinds, values["repetitions"])
        away = skipped(plan)
        if len(away) == len(plan.faults):
            raise PlanError([f"{kind} can't be run: {why}" for kind, why in away.items()])
    except PlanError as error:
        problems += error.problems
        return None
    return plan


def _chaos(values: flags.Values, mode: str) -> int:
    from paramserver.lab.chaos.report.write import write
    from paramserver.lab.chaos.result import to_json
    from paramserver.lab.chaos.run import ChaosOptions, run_chaos
    from paramserver.lab.chaos.table import markdown
    from paramserver.lab.errors import LabError

    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # gRPC's own lines would stand between ours
    plan = _plan(values, [])
    assert plan is not None
    minutes = values["minutes"] if mode == "soak" else None
    out = Path(values["out"]) if values["out"] else None
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=out).close()
        except OSError as error:
            hint = "name a folder that can be made and written to; nothing was started"
            raise CommandError(f"--out {out}: {error.strerror}", hint, code=codes.USAGE) from None
    stream = sys.stderr if values["json"] else sys.stdout

    def tell(text: str) -> None:
        print(escape(text, 1000), file=stream, flush=True)

    options = ChaosOptions(
        plan=plan,
        seed=values["seed"],
        command=shlex.join(["paramserver", *sys.argv[1:]]),
        replay=_replay(values, mode),
        minutes=minutes,
        folder=out,
        keep=values["keep"],
    )
    try:
        result = run_chaos(options, tell)
    except LabError as error:
        raise CommandError(error.cause, " | ".join(error.hint.splitlines())) from error
    if out is not None:
        (out / "chaos.json").write_text(json.dumps(to_json(result)) + "\n")
        (out / "chaos.md").write_text(markdown(result))
        if missing := write(result, out / "chaos.html"):
            tell(missing)
    print(markdown(result), file=stream, flush=True)
    _close(result)
    if values["json"]:
        print(json.dumps(to_json(result.summary)), flush=True)
    return codes.OK if result.passed else codes.CHECK_FAILED


def _close(result: ChaosResult) -> None:
    if not result.passed:
        print(f"{len(result.problems)} checks failed", file=sys.stderr)
    if result.kept:
        print(f"logs and data folders: {result.kept}", file=sys.stderr, flush=True)
    if not result.passed:
        print(f"the same plan again: {result.replay}", file=sys.stderr, flush=True)


def _replay(values: flags.Values, mode: str) -> str:
    words = ["paramserver", "chaos", mode]
    for name in ("suite", "plan", "kinds", "repetitions", "minutes"):
        if name in values.given:
            words += [f"--{name}", str(values[name])]
    return shlex.join([*words, "--seed", str(values["seed"])])


REPETITIONS = Flag("--repetitions", "of each kind, whatever the plan says", flags.integer(1, 10_000), None, "N")
RUN = Verb(
    "Start a cluster on this machine, train and count on it, and inject faults; say how long training stood still,\n"
    "what was lost, doubled or stale, and whether every bit is that of a run without faults.",
    "examples:\n  paramserver chaos run --suite quick --json\n"
    "  paramserver chaos run --kinds kill_leader,pause_leader --repetitions 10 --seed 7 --out results\n\n"
    "exit code 1: an update lost or doubled, a stale read, other bits, a hang, or a fault that proves nothing\n",
    (
        Flag("--suite", "a built-in plan: slice (45 s), quick (three minutes) or full (more than 500 faults)",
             flags.choice(*SUITE_NAMES), "quick", "NAME"),
        PLAN, KINDS, REPETITIONS, SEED, OUT, KEEP, JSON,
    ),
    "chaos run",
    _run,
    _check,
)  # fmt: skip
SOAK = Verb(
    "Inject faults of all kinds into one cluster, mixed, for as long as you say, and watch its servers' memory and\n"
    "descriptors for growth.",
    "example:\n  paramserver chaos soak --minutes 30 --json --out soak\n\nexit code 1: as of chaos run, or growth\n",
    (
        Flag("--minutes", "how long", flags.number(0.1, 100_000), 30.0, "N"),
        Flag("--suite", "a built-in plan", flags.choice(*SUITE_NAMES), "soak", "NAME"),
        PLAN, KINDS, REPETITIONS, SEED, OUT, KEEP, JSON,
    ),
    "chaos soak",
    _soak,
    _check,
)  # fmt: skip
