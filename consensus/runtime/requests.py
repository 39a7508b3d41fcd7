"""Requests to a replica that wait for their outcome: reads, changes of membership, transfers of leadership.

Owns who waits and what each gets. Invariants: each gets exactly one outcome, also when leadership ends, time runs out
or the replica stops (HAZARDS 28); a read is answered only when the state applied here has reached its index; each list
is bounded by who adds to it. Must not know: the core's insides, lanes, peers.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from consensus.core.interface import Configuration, MembershipChange, ReadResult, ReplicaId, Role, Status
from consensus.runtime.interface import (
    Committed,
    Outcome,
    ReadIndex,
    ReadOutcome,
    Refused,
    TransferOutcome,
    Transferred,
    Unknown,
)

ReadDone: TypeAlias = Callable[[ReadOutcome], None]
MembershipDone: TypeAlias = Callable[[Outcome], None]
TransferDone: TypeAlias = Callable[[TransferOutcome], None]


class Reads:
    """First for their index (asked of the core by token), then for the state machine to get there."""

    __slots__ = ("_applying", "_asked", "_token")

    def __init__(self) -> None:
        self._asked: dict[int, ReadDone] = {}
        self._applying: list[tuple[int, int, ReadIndex, ReadDone]] = []
        """A heap by index, then token."""
        self._token = 0

    def __len__(self) -> int:
        return len(self._asked) + len(self._applying)

    def add(self, done: ReadDone) -> int:
        """The token to ask the core with."""
        self._token += 1
        self._asked[self._token] = done
        return self._token

    def refuse(self, token: int, refused: Refused) -> None:
        done = self._asked.pop(token, None)
        if done is not None:
            done(refused)

    def answered(self, result: ReadResult, *, applied_index: int, refused: Refused) -> None:
        """The core's answer; `refused` is what to say when it is no index."""
        done = self._asked.pop(result.token, None)
        if done is None:
            return
        if result.refused:
            done(refused)
        elif applied_index >= result.index:
            done(ReadIndex(result.index, result.age_ms))
        else:
            answer = ReadIndex(result.index, result.age_ms)
            heapq.heappush(self._applying, (result.index, result.token, answer, done))

    def applied(self, index: int) -> None:
        while self._applying and self._applying[0][0] <= index:
            _, _, answer, done = heapq.heappop(self._applying)
            done(answer)

    def stop(self, refused: Refused) -> None:
        waiting = [*self._asked.values(), *(done for _, _, _, done in self._applying)]
        self._asked, self._applying = {}, []
        for done in waiting:
            done(refused)


@dataclass(frozen=True, slots=True)
class _Change:
    wanted: MembershipChange
    led_term: int
    """In which it was asked for."""
    term: int
    index: int
    """Of the entry that begins it, or of what is so already."""
    done: MembershipDone


class Memberships:
    """Changes on their way. `Committed` when the final configuration, the one asked for and not joint, is applied here;
    `Unknown` when leadership ends before it is known to be committed: asking again does no harm."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[_Change] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, wanted: MembershipChange, done: MembershipDone, *, led_term: int, term: int, index: int) -> None:
        self._waiting.append(_Change(wanted, led_term, term, index, done))

    def settle(self, status: Status) -> None:
        """Answer those that are decided."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        decided = []
        for change in waiting:
            outcome = _outcome_of(change, status)
            if outcome is None:
                self._waiting.append(change)
            else:
                decided.append((change, outcome))
        for change, outcome in decided:
            change.done(outcome)

    def stop(self) -> None:
        waiting, self._waiting = self._waiting, []
        for change in waiting:
            change.done(Unknown(change.term, change.index))


def _outcome_of(change: _Change, status: Status) -> Outcome | None:
    configuration, index = status.configuration, status.configuration_index
    unknown = Unknown(change.term, change.index)
    if configuration is None:
        return unknown
    reached = index >= change.index and is_final(configuration, change.wanted)
    if reached and status.applied_index >= index:
        return Committed(change.term, index, None)
    if reached and status.commit_index >= index:
        # Committed, and applied here soon, whether this replica still leads or not.
        return None
    if status.role is not Role.LEADER or status.term != change.led_term:
        return unknown
    if not reached and not configuration.outgoing and status.commit_index >= index >= change.index:
        # Another change came after it, or what the leader made of it is not what was asked for.
        return unknown
    return None


def is_final(configuration: Configuration, wanted: MembershipChange) -> bool:
    """What was asked for holds, and is not joint any more."""
    return (
        not configuration.outgoing
        and set(configuration.voters) == set(wanted.voters)
        and set(configuration.learners) == set(wanted.learners)
    )


class Transfers:
    """All to one target at a time; the core hands over once for all of them."""

    __slots__ = ("_elapsed_ms", "_from_term", "_target", "_waiting")

    def __init__(self) -> None:
        self._waiting: list[TransferDone] = []
        self._target: ReplicaId = 0
        self._from_term = 0
        self._elapsed_ms = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def target(self) -> ReplicaId:
        """0: none under way."""
        return self._target if self._waiting else 0

    def add(self, target: ReplicaId, term: int, done: TransferDone) -> None:
        if not self._waiting:
            self._target, self._from_term, self._elapsed_ms = target, term, 0
        self._waiting.append(done)

    def tick(self, elapsed_ms: int) -> None:
        self._elapsed_ms += elapsed_ms

    def settle(self, status: Status, *, give_up_ms: int) -> None:
        """`give_up_ms`: after this long it is over, whatever the core thinks of it."""
        if not self._waiting:
            return
        if status.leader == self._target and status.term > self._from_term:
            self._end(Transferred(status.leader, status.term))
        elif status.leader and status.term > self._from_term:
            self._refuse(status, f"replica {status.leader} leads instead")
        elif status.role is Role.LEADER and status.term == self._from_term and not status.transferee:
            self._refuse(status, f"replica {self._target} did not take over in time")
        elif self._elapsed_ms >= give_up_ms:
            self._refuse(status, "no new leader is known yet")

    def stop(self, term: int) -> None:
        self._end(Refused(0, term, reason="this replica stops"))

    def _refuse(self, status: Status, reason: str) -> None:
        self._end(Refused(status.leader, status.term, reason=reason))

    def _end(self, outcome: TransferOutcome) -> None:
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done(outcome)
