"""`paramserver launch`: a training script N times on this machine, each with its rank.

Owns the way from flags and the environment to a `JobPlan`, and the folder of session files where none was named. Must
not know: processes and signals.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from paramserver.cli import flags
from paramserver.cli.codes import CommandError, UsageProblems
from paramserver.cli.flags import Flag
from paramserver.cli.text import escape

SERVERS = "PARAMSERVER_SERVERS"

DESCRIPTION = """\
Start a training script N times on this machine, and start those again that die. In the script paramserver.connect()
finds the servers and its session by itself; rank and ranks are in the environment, by our names and by torchrun's."""
EPILOG = f"""\
example:
  paramserver launch -n 4 --servers 127.0.0.1:7001,127.0.0.1:7002,127.0.0.1:7003 -- python train.py --epochs 3

environment of each worker:
  {SERVERS}, PARAMSERVER_SESSION   what connect() without arguments uses
  PARAMSERVER_RANK, PARAMSERVER_RANKS        its rank from 0, and how many there are
  RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE
                                             the same, as torchrun calls them
  TORCHELASTIC_RESTART_COUNT                 how often this rank was started again

Ctrl-C, SIGTERM and SIGHUP are passed on; after --grace seconds, or at a second Ctrl-C, what still runs is killed. The
exit code is that of the first worker that failed for good (128 + N for signal N), 128 + N if signal N ended the job.
"""
COMMAND = "paramserver launch -n 4 -- python train.py"
FLAGS = (
    Flag("--workers", "workers to start", flags.integer(1, 64), 1, "N", short="-n"),
    Flag("--servers", f"some servers of the cluster; one that answers is enough [{SERVERS} of the environment]",
         flags.endpoints, metavar="HOST:PORT,..."),
    Flag("--max-restarts", "starts of workers that died, all ranks together; then the job ends",
         flags.integer(0, 1_000_000), 3, "N"),
    Flag("--session-dir", "where session files are kept, one a rank; the same folder makes the next job take its ranks "
         "over from this one at once [a temporary one]", flags.text_value, metavar="DIR"),
    Flag("--log-dir", "output goes to rankN.log there, appended, and not to the terminal", flags.text_value,
         metavar="DIR"),
    Flag("--grace", "seconds that workers have to end once they are told to", flags.number(0, 86_400), 10.0, "SECONDS"),
)  # fmt: skip


def run(values: flags.Values, problems: list[str]) -> int:
    servers = servers_of(values, problems)
    command = values.command
    program = shutil.which(command[0])
    if program is None:
        near = flags.did_you_mean(command[0], [one for one in ("python", "python3") if shutil.which(one)])
        problems.append(f"command '{escape(command[0])}': no such program{near or _not_a_program(command[0])}")
    flags.raise_problems(problems, "launch")

    from paramserver.cli.launch_job import Job, JobPlan

    with ExitStack() as stack:
        sessions = values["session_dir"] or stack.enter_context(tempfile.TemporaryDirectory(prefix="paramserver-job-"))
        plan = JobPlan(
            command=command,
            workers=values["workers"],
            servers=",".join(servers),
            session_folder=folder(sessions, "--session-dir"),
            max_restarts=values["max_restarts"],
            grace_s=values["grace"],
            log_folder=folder(values["log_dir"], "--log-dir") if values["log_dir"] else None,
        )
        try:
            return Job(plan, sys.stdout.buffer, sys.stderr.buffer, say).run()
        except BrokenPipeError:
            hint = "its workers were killed; --log-dir keeps output without a reader"
            raise CommandError("nobody reads the output any more", hint) from None
        except OSError as error:
            if error.filename != command[0]:
                raise
            raise UsageProblems(
                [f"command '{escape(command[0])}': {error.strerror}"], "a script needs its interpreter: python train.py"
            ) from error


def servers_of(values: flags.Values, problems: list[str]) -> tuple[str, ...]:
    if "servers" in values.given:
        return tuple(values["servers"])
    told = os.environ.get(SERVERS, "")
    if not told:
        if not any(problem.startswith("--servers") for problem in problems):
            problems.append(
                f"--servers is missing, and {SERVERS} is not set: some servers of the cluster, as host:port"
            )
        return ()
    try:
        return flags.endpoints(told)
    except ValueError as error:
        problems.append(f"{SERVERS} '{escape(told)}' of the environment: {error}")
        return ()


def folder(path: str, flag: str) -> Path:
    """Made if it is not there."""
    place = Path(path)
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        problem = f"{flag} '{escape(path)}': {error.strerror}"
        raise UsageProblems([problem], "name a folder that can be written to; nothing was started") from None
    return place


def _not_a_program(word: str) -> str:
    if Path(word).is_file():
        return f", for the file is not executable; try: python {escape(word)}"
    return " on PATH"


def say(line: str) -> None:
    print(f"paramserver launch: {line}", file=sys.stderr, flush=True)
