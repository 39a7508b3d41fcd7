"""How new the state of this node's replicas is known to be: what linearizable and bounded reads rest on (RULES R2, R3).

Owns the last confirmation of each group: at a moment of this node's clock, state up to an index held everything that
had been acknowledged. Invariants: a confirmation comes from a read index and never from heartbeats heard; it is dated
when it was asked for, less the age that the answer carries; for a linearizable read one is asked for after the read
came, always; a bounded read takes the last one while that is new enough, so without a quorum it is answered until its
bound has passed and refused from then on. Must not know: blocks, gRPC.

The clock is the event loop's, which is monotonic and goes on while the process is stopped.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass

from consensus.core.interface import GroupId, ReplicaId
from consensus.runtime.interface import ReadIndex, ReadOutcome, Refused
from paramserver.rpc.groups import Groups, Handle
from paramserver.wire.errors import Reason, Refusal

RETRY_AFTER_MS = 50
HINT = "a majority of the group's nodes must run and reach each other"


@dataclass(frozen=True, slots=True)
class Confirmation:
    """The replica's state up to `index` held everything that was acknowledged at `as_of_s`."""

    replica: ReplicaId
    index: int
    as_of_s: float

    @property
    def age_ms(self) -> int:
        """Of that state, at most, now."""
        return max(0, math.ceil((_now_s() - self.as_of_s) * 1000))


class Freshness:
    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._last: dict[GroupId, Confirmation] = {}

    async def confirm(self, group: GroupId) -> Confirmation:
        """State applied here holds everything that was acknowledged before this call. Raises `Refusal`; how long it
        may take is the caller's to bound."""
        hosted = self._groups.hosted.get(group)
        if hosted is None:
            raise self._groups.elsewhere(group)
        asked_s = _now_s()
        outcome = await _read_index(hosted.handle)
        if isinstance(outcome, Refused):
            raise self._refusal(group, outcome)
        found = Confirmation(hosted.replica, outcome.index, asked_s - outcome.age_ms / 1000)
        known = self._last.get(group)
        if known is None or not self.holds(group, known) or known.as_of_s < found.as_of_s:
            self._last[group] = found
        return found

    async def within(self, group: GroupId, bounded_ms: int) -> Confirmation:
        """State applied here is at most `bounded_ms` old. Raises `Refusal` that says how old it may be."""
        known = self._last.get(group)
        if known is not None and not self.holds(group, known):
            known = None
        if known is not None and known.age_ms <= bounded_ms:
            return known
        try:
            found = await self.confirm(group)
        except Refusal as refusal:
            if refusal.reason is not Reason.UNCONFIRMED:
                raise
            since = f"was last confirmed {known.age_ms} ms ago" if known is not None else "was not confirmed before"
            raise self._too_old(group, bounded_ms, f"{refusal.message}; its state {since}", HINT) from None
        if found.age_ms > bounded_ms:
            problem = f"node {self._groups.node} needed {found.age_ms} ms to confirm its state of group {group}"
            raise self._too_old(group, bounded_ms, problem, "ask for a longer bound, or for a linearizable read")
        return found

    def holds(self, group: GroupId, known: Confirmation) -> bool:
        """Whether it still speaks of the state here: that may have been replaced."""
        hosted = self._groups.hosted.get(group)
        if hosted is None or hosted.replica != known.replica:
            return False
        status = hosted.handle.status()
        core = status.core
        return core is not None and not status.distrusted and core.applied_index >= known.index

    def _refusal(self, group: GroupId, refused: Refused) -> Refusal:
        if refused.busy:
            message = f"node {self._groups.node}: {refused.reason or 'too many reads wait'}"
            return Refusal(Reason.BUSY, message, group=group, term=refused.term, retry_after_ms=RETRY_AFTER_MS)
        node, _ = self._groups.leader(group)
        return Refusal(
            Reason.UNCONFIRMED,
            f"node {self._groups.node} can't confirm that its state of group {group} is the newest: "
            + (refused.reason or "the group has no leader now"),
            hint=HINT,
            leader_address=self._groups.addresses.get(node, "") if node != self._groups.node else "",
            group=group,
            term=refused.term,
            retry_after_ms=RETRY_AFTER_MS,
        )

    @staticmethod
    def _too_old(group: GroupId, bounded_ms: int, problem: str, hint: str) -> Refusal:
        return Refusal(
            Reason.UNCONFIRMED,
            f"{problem}; the bound is {bounded_ms} ms",
            field="bounded_ms",
            expected=f"state at most {bounded_ms} ms old",
            hint=hint,
            group=group,
            retry_after_ms=RETRY_AFTER_MS,
        )


async def _read_index(handle: Handle) -> ReadIndex | Refused:
    future: asyncio.Future[ReadOutcome] = asyncio.get_running_loop().create_future()

    def done(outcome: ReadOutcome) -> None:
        if not future.done():
            future.set_result(outcome)

    handle.read_index(done)
    return await future


def _now_s() -> float:
    """On the loop's clock, which a simulation may have its own of."""
    return asyncio.get_running_loop().time()
