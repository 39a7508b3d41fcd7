"""What can go wrong in the laboratory.

    LabError                 cause and hint, always
    +-- NotReady             a process did not come up, or did not end, in time
    +-- Died                 a process ended that should be running
    +-- DeadlinePassed       a condition did not come true in time

Whoever shows one prints `cause` and `hint`.
"""

from __future__ import annotations


class LabError(Exception):
    """`cause` is one line; `hint` says what to do."""

    def __init__(self, cause: str, hint: str = "") -> None:
        super().__init__(cause if not hint else f"{cause} ({hint})")
        self.cause = cause
        self.hint = hint


class NotReady(LabError):
    pass


class Died(LabError):
    """`code` is the exit status; negative for a signal."""

    def __init__(self, cause: str, hint: str = "", *, code: int = 0) -> None:
        super().__init__(cause, hint)
        self.code = code


class DeadlinePassed(LabError):
    pass
