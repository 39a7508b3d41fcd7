"""Exit codes of every subcommand, and the one error they end with.

Must not import anything heavy: every start of the command reads this.
"""

from __future__ import annotations

OK = 0
CHECK_FAILED = 1
"""The command ran, and what it was to check is not so (the demo's verdict, a digest)."""
USAGE = 2
"""Flags or configuration; nothing was started or changed."""
REFUSED = 3
"""The servers refused it; nothing was changed."""
UNREACHABLE = 69
"""No server answered in time, or the answer was lost."""
INTERNAL = 70
"""A defect in this program."""
STORAGE = 74
"""A disk failed under a server: after a failed fsync nothing that was not synced can be trusted."""
LATER = 75
"""It was begun, and was not done when the time was up; it goes on by itself."""
INTERRUPTED = 130
"""Ctrl-C."""
TERMINATED = 143
"""SIGTERM, where it could not end in order."""

TABLE = f"""\
exit codes:
  {OK:<4} all well
  {CHECK_FAILED:<4} a check failed
  {USAGE:<4} wrong flags or configuration; nothing was started
  {REFUSED:<4} refused by the servers; nothing was changed
  {UNREACHABLE:<4} servers unreachable
  {INTERNAL:<4} a defect of the program
  {STORAGE:<4} storage failed (see docs/operations.md)
  {LATER:<4} begun and not done in time; it goes on by itself
  {INTERRUPTED:<4} interrupted
"""


class CommandError(Exception):
    """Ends a subcommand: one line of cause, one of hint, an exit code."""

    def __init__(self, cause: str, hint: str = "", *, code: int = CHECK_FAILED) -> None:
        super().__init__(cause)
        self.cause = cause
        self.hint = hint
        self.code = code


class UsageProblems(CommandError):
    """All that is wrong with flags or configuration, at once."""

    def __init__(self, problems: list[str], hint: str) -> None:
        super().__init__("; ".join(problems), hint, code=USAGE)
        self.problems = problems
