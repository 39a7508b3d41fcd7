"""What `paramserver node ...` and `paramserver group ...` share: flags, the way of a wish, and waiting for it.

Invariants: a dry run changes nothing; what was begun goes on by itself, so a wait that ends early loses nothing and
says so (exit code 75); with --json the last line of standard output is one object and progress goes to standard error.
Must not know: single commands.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TextIO

from paramserver.cli import codes, flags
from paramserver.cli.codes import CommandError
from paramserver.cli.flags import Flag
from paramserver.cli.text import escape

if TYPE_CHECKING:
    from paramserver.lab.admin import Admin, AdminError, ClusterView, Shaped

POLL_S = 0.1
ASK_TIMEOUT_S = 15.0
"""For one answer of group 0's leader."""
SERVERS = Flag("--servers", "some servers of the cluster; one that answers is enough", flags.endpoints,
               metavar="HOST:PORT,...", required=True)  # fmt: skip
JSON = Flag("--json", "the last line of standard output is one JSON object; progress goes to standard error")
DRY_RUN = Flag("--dry-run", "say the steps and the quorum arithmetic, and change nothing")
NO_WAIT = Flag("--no-wait", "return when it is recorded; it goes on by itself")
TIMEOUT = Flag("--timeout", "seconds to wait for it", flags.number(0.1, 86_400), 600.0, "SECONDS")
LOOKING = (SERVERS, JSON, Flag("--timeout", "seconds to wait for answers", flags.number(0.1, 600), 10.0, "SECONDS"))
CHANGING = (SERVERS, DRY_RUN, NO_WAIT, TIMEOUT, JSON)


@dataclass(frozen=True, slots=True)
class Verb:
    """A subcommand as a value (`entry.Subcommand`)."""

    DESCRIPTION: str
    EPILOG: str
    FLAGS: tuple[Flag, ...]
    name: str
    work: Callable[[flags.Values], int]
    check: Callable[[flags.Values, list[str]], None] | None = None
    """Adds what is wrong with the flags taken together."""

    def run(self, values: flags.Values, problems: list[str]) -> int:
        if self.check is not None:
            self.check(values, problems)
        flags.raise_problems(problems, self.name)
        return self.work(values)


def admin_of(values: flags.Values) -> Admin:
    from paramserver.lab.admin import Admin

    return Admin(values["servers"], timeout_s=min(ASK_TIMEOUT_S, values["timeout"]))


def look(values: flags.Values) -> ClusterView:
    from paramserver.lab.admin import AdminError

    try:
        return admin_of(values).members()
    except AdminError as error:
        raise command_error(error) from None


def change(values: flags.Values, wish: Any, done: Callable[[ClusterView], bool]) -> int:
    """Have it planned, or recorded and carried out. `done`: whether what was asked for is so."""
    from paramserver.lab.admin import AdminError

    stream = sys.stderr if values["json"] else sys.stdout
    admin = admin_of(values)
    deadline = time.monotonic() + values["timeout"]
    shaped: Shaped | None = None
    try:
        shaped = admin.wish(wish, dry_run=values["dry_run"])
        tell(shaped, stream, dry_run=values["dry_run"])
        finished = values["dry_run"] or values["no_wait"] or wait(admin, done, deadline, stream)
    except AdminError as error:
        raise command_error(error) from None
    except KeyboardInterrupt:
        if values["dry_run"]:
            raise
        raise interrupted(recorded=shaped is not None) from None
    if values["json"]:
        print(json.dumps({**asdict(shaped), "dry_run": values["dry_run"], "done": done_word(values, finished)}))
    if not finished:
        raise CommandError(
            f"recorded, and not done within {values['timeout']:g} s; it goes on by itself",
            SHOWN_BY,
            code=codes.LATER,
        )
    return codes.OK


def interrupted(*, recorded: bool) -> CommandError:
    """What Ctrl-C leaves behind."""
    if recorded:
        cause = "interrupted; what was recorded goes on by itself"
    else:
        cause = "interrupted; it may have been recorded, and then goes on by itself"
    return CommandError(cause, SHOWN_BY, code=codes.INTERRUPTED)


def done_word(values: flags.Values, finished: bool) -> bool:
    return bool(finished and not values["dry_run"] and not values["no_wait"])


def tell(shaped: Shaped, stream: TextIO, *, dry_run: bool) -> None:
    if dry_run:
        print("would do, and has done nothing:", file=stream)
    for step in shaped.steps:
        print(f"  {escape(step, 500)}", file=stream)
    if dry_run and shaped.arithmetic:
        print("quorums:", file=stream)
        for line in shaped.arithmetic:
            print(f"  {escape(line, 500)}", file=stream)
    stream.flush()


def wait(admin: Admin, done: Callable[[ClusterView], bool], deadline: float, stream: TextIO) -> bool:
    """False when the time was up first. Tells of each stage once."""
    from paramserver.lab.admin import Unreachable

    said: set[str] = set()
    while True:
        try:
            view = admin.members()
        except Unreachable as away:
            _once(f"waiting: {away.cause}", said, stream)
        else:
            for move in view.moves:
                line = f"group {move.group}: replica {move.replica} on node {move.to_node}: {STAGES[move.stage]}"
                _once(line + (f" ({move.trouble})" if move.trouble else ""), said, stream)
            if done(view):
                print("done", file=stream, flush=True)
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)


SHOWN_BY = "paramserver group list --servers ... shows what is being moved and what is in its way"
STAGES = {"create": "being made", "learn": "catching up as a learner", "swap": "taking its place as a voter"}


def _once(line: str, said: set[str], stream: TextIO) -> None:
    if line not in said:
        said.add(line)
        print(f"  {escape(line, 500)}", file=stream, flush=True)


def command_error(error: AdminError) -> CommandError:
    from paramserver.lab.admin import Refused

    if isinstance(error, Refused):
        code = codes.USAGE if error.code in ("INVALID_ARGUMENT", "NOT_FOUND") else codes.REFUSED
        return CommandError(error.cause, error.hint, code=code)
    return CommandError(error.cause, error.hint, code=codes.UNREACHABLE)


# --- words on the command line


def node_number(text: str) -> int:
    return flags.integer(1, 65_535)(text)


def group_number(text: str) -> int:
    return flags.integer(0, 65_535)(text)


def node_at(text: str) -> tuple[int, str]:
    """`4=host:port`"""
    found = flags.members(text)
    if len(found) != 1:
        raise ValueError(f"expected one node, such as 4=127.0.0.1:7004, got {len(found)}")
    return next(iter(found.items()))


def node_or_new(text: str) -> tuple[int, str]:
    """`4`, or `4=host:port` for one that does not belong to the cluster yet."""
    return node_at(text) if "=" in text else (node_number(text), "")
