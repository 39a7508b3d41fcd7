"""Leaders go where the configuration prefers them: to its first voter (RULES C6).

Owns: since when the preferred voter of each group led here could have led, and when the next try may be. Invariants: a
node hands over one group at a time; a try that failed is followed by a pause that doubles; nobody is refused a vote for
it, and nothing depends on it: it spreads load, no more. Must not know: why the configuration's order is what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from consensus.core.interface import GroupId
from consensus.runtime.group import GroupHandle
from consensus.runtime.interface import TransferOutcome, Transferred

CHECKS = 10
"""How often the preferred voter is looked at in the time it must be well."""
CHECK_MS_MAX = 1000
BACK_OFF_MAX = 5
"""The pause after a failed try doubles at most this often."""


@dataclass(slots=True)
class _Watched:
    """A group that is led here and prefers another. `committed`: the commit index at the last look."""

    well_since_ms: int
    committed: int
    failures: int = 0


class Preference:
    """Of one node. `handles` gives its groups; time comes with `tick`."""

    def __init__(self, handles: Callable[[], Iterable[GroupHandle]], *, prefer_after_ms: int) -> None:
        """`prefer_after_ms`: how long the preferred voter must have been connected and caught up; 0: never hand
        over."""
        self._handles = handles
        self._prefer_after_ms = prefer_after_ms
        self._check_ms = min(CHECK_MS_MAX, max(1, prefer_after_ms // CHECKS))
        self._next_ms = 0
        self._watched: dict[GroupId, _Watched] = {}
        self._busy = False
        """A transfer that was begun here has no outcome yet."""

    def tick(self, now_ms: int) -> None:
        if not self._prefer_after_ms or now_ms < self._next_ms:
            return
        self._next_ms = now_ms + self._check_ms
        led = [handle for handle in self._handles() if self._look(handle, now_ms)]
        for group in self._watched.keys() - {handle.group for handle in led}:
            del self._watched[group]
        if self._busy:
            return
        for handle in led:
            watched = self._watched[handle.group]
            pause_ms = self._prefer_after_ms << min(watched.failures, BACK_OFF_MAX)
            if now_ms - watched.well_since_ms >= pause_ms:
                self._hand_over(handle, watched, now_ms)
                return

    def _look(self, handle: GroupHandle, now_ms: int) -> bool:
        """Whether the group is led here and prefers another."""
        core, preferred = handle.core, handle.prefers
        if core is None or not preferred:
            return False  # without a look at its core: there may be many, and they may be asleep
        status = core.status()
        watched = self._watched.get(handle.group)
        if watched is None:
            watched = self._watched[handle.group] = _Watched(now_ms, status.commit_index)
        # Under load it always lacks what is on its way: it must have what was committed a look ago.
        caught_up = status.match.get(preferred, 0) >= watched.committed and status.ready_to_serve
        watched.committed = status.commit_index
        if not caught_up or (core.transfer_problem(preferred) and not status.transferee):
            watched.well_since_ms = now_ms
        return True

    def _hand_over(self, handle: GroupHandle, watched: _Watched, now_ms: int) -> None:
        if handle.core is None or handle.core.status().transferee:
            return
        self._busy = True

        def done(outcome: TransferOutcome) -> None:
            self._busy = False
            if not isinstance(outcome, Transferred):
                watched.failures += 1
                watched.well_since_ms = now_ms

        handle.transfer(handle.prefers, done)
