"""What must be durable before others hear of it.

Owns: batch numbers, whether term and vote are durable, and messages that wait for it. Invariants: a promise (a vote,
an answer that carries a term) leaves only after the (term, vote) it was made under is durable; batches become durable
in the order of their numbers, hard state and entries in one stream (HAZARDS 7). Requests of a leader need not wait:
its term was durable before it won, and its entries count nowhere before they are flushed there. Must not know: what
messages mean.

How far *entries* are durable is the log's flushed cursor; answers that speak of entries are made from it
(following.py).
"""

from __future__ import annotations

from collections import deque

from consensus.core.errors import InvariantViolated
from consensus.core.interface import AnyMessage, HardState
from consensus.core.raft.state import ReplicaState


class Durability:
    __slots__ = ("_commit_issued", "_held", "_issued", "_issued_number", "_state", "durable", "next_number", "outgoing")

    def __init__(self, state: ReplicaState, *, commit_index: int) -> None:
        self._state = state
        self._issued = (state.term, state.vote)
        self._issued_number = 0
        self._commit_issued = commit_index
        self.durable = 0
        """The last batch reported durable."""
        self.next_number = 1
        self.outgoing: list[AnyMessage] = []
        """What may be sent now."""
        self._held: deque[tuple[int, AnyMessage]] = deque()

    @property
    def held_count(self) -> int:
        return len(self._held)

    def hard_state_due(self) -> bool:
        """Term or vote changed since they were last handed out to be written."""
        return self._issued != (self._state.term, self._state.vote)

    def synced(self) -> bool:
        """Term and vote, as they are now, are durable."""
        return self._issued_number <= self.durable and not self.hard_state_due()

    def send(self, message: AnyMessage) -> None:
        """For messages that promise nothing: they may leave at once."""
        self.outgoing.append(message)

    def send_durable(self, message: AnyMessage) -> None:
        """For promises: leaves at once when term and vote are durable, else as soon as they are."""
        if self.synced():
            self.outgoing.append(message)
        elif len(self._held) >= self._state.config.held_messages_max:
            self._state.drop("held_messages_full")
        else:
            number = self.next_number if self.hard_state_due() else self._issued_number
            self._held.append((number, message))

    def open_batch(self) -> int:
        number = self.next_number
        self.next_number += 1
        return number

    def issue_hard_state(self, number: int, *, commit_hint: int) -> HardState | None:
        """Hard state for the batch `number`, or None when nothing changed. `commit_hint` must be durable as entries: a
        hint beyond them would call an overwritten tail committed after a crash between the two."""
        state = self._state
        if not self.hard_state_due() and commit_hint == self._commit_issued:
            return None
        if self.hard_state_due():
            self._issued = (state.term, state.vote)
            self._issued_number = number
        self._commit_issued = commit_hint
        return HardState(state.term, state.vote, commit_hint)

    def reported(self, number: int) -> bool:
        """The batches up to `number` are durable; False for an old report. Releases what waited for them."""
        if number >= self.next_number:
            raise InvariantViolated(f"batch {number} was reported durable, but only {self.next_number - 1} were issued")
        if number <= self.durable:
            return False
        self.durable = number
        while self._held and self._held[0][0] <= number:
            self.outgoing.append(self._held.popleft()[1])
        return True
