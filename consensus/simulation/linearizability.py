"""Whether a history of operations could have come from one copy of the data (Herlihy and Wing).

Owns the checker and the objects it knows: a register and a counter. The search is that of Wing and Gong as Lowe
improved it ("Testing for linearizability", 2017): operations take effect one at a time, between being asked for and
being answered; what was seen before is not tried again. It goes through the history in the order of time and keeps
every state that the object may be in, with the set of operations under way that already took effect in it. An operation
takes effect as late as possible: only when an answer asks for it. One whose outcome is unknown may do so at any later
time, or never.

Invariants: exact, within a stated amount of work; beyond it the verdict is "undecided", never a wrong one. Histories of
different objects are checked apart, which is sound (linearizability is local). Must not know: who made the history.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, TypeAlias

State: TypeAlias = Hashable
WORK_MAX = 200_000
"""Steps of the search in one history."""
FOREVER = 1 << 62


@dataclass(frozen=True, slots=True)
class Operation:
    """`result` is what was answered; it means nothing while `answered_us` is None (unknown outcome)."""

    action: str
    argument: Any
    result: Any
    asked_us: int
    answered_us: int | None
    who: str = ""

    def describe(self) -> str:
        until = "never" if self.answered_us is None else f"{self.answered_us / 1000:.3f}"
        answer = "?" if self.answered_us is None else repr(self.result)
        shown = "" if self.argument is None else repr(self.argument)
        return f"{self.asked_us / 1000:11.3f} .. {until:>11} ms  {self.who:<10} {self.action}({shown}) -> {answer}"


class Kind(Protocol):
    """An object by its sequential behaviour."""

    initial: State

    def apply(self, state: State, operation: Operation) -> tuple[State, Any]:
        """(the state after it, what it answers)."""


class Register:
    """`write(value)` answers None, `read()` the value."""

    initial: State = 0

    def apply(self, state: State, operation: Operation) -> tuple[State, Any]:
        if operation.action == "write":
            return operation.argument, None
        return state, state


class Counter:
    """`add(amount)` answers the sum after it, `read()` the sum."""

    initial: State = 0

    def apply(self, state: State, operation: Operation) -> tuple[State, Any]:
        if operation.action == "add":
            total = state + operation.argument
            return total, total
        return state, state


class Answer(Enum):
    LINEARIZABLE = "linearizable"
    NOT = "not linearizable"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`stuck`: the operation whose answer nothing explains. `work`: steps it took."""

    answer: Answer
    work: int
    stuck: Operation | None = None


Configuration: TypeAlias = tuple[State, frozenset[int]]
"""A state, and which of the operations under way took effect on the way to it."""


def check(history: Iterable[Operation], kind: Kind, *, work_max: int = WORK_MAX) -> Verdict:
    """Of one object. Reads whose outcome is unknown say nothing and are left out."""
    operations = [each for each in history if each.answered_us is not None or each.action != "read"]
    return _Search(operations, kind, work_max).run()


class _TooMuch(Exception):
    pass


class _Search:
    def __init__(self, operations: Sequence[Operation], kind: Kind, work_max: int) -> None:
        self._operations = operations
        self._kind = kind
        self._work_max = work_max
        self._work = 0
        self._pending: list[int] = []
        """Operations under way, in the order in which they were asked for; unknown ones stay for ever."""

    def run(self) -> Verdict:
        configurations: set[Configuration] = {(self._kind.initial, frozenset())}
        try:
            for number, is_answer in self._events():
                if not is_answer:
                    self._pending.append(number)
                    continue
                configurations = self._answered(configurations, number)
                self._pending.remove(number)
                if not configurations:
                    return Verdict(Answer.NOT, self._work, self._operations[number])
        except _TooMuch:
            return Verdict(Answer.UNDECIDED, self._work)
        return Verdict(Answer.LINEARIZABLE, self._work)

    def _events(self) -> list[tuple[int, bool]]:
        """(operation, whether it is its answer) in the order of time. What was asked at the very moment of an answer
        overlaps it."""
        events = []
        for number, operation in enumerate(self._operations):
            events.append((operation.asked_us, 0, number))
            if operation.answered_us is not None:
                events.append((operation.answered_us, 1, number))
        return [(number, bool(is_answer)) for _, is_answer, number in sorted(events)]

    def _answered(self, configurations: set[Configuration], number: int) -> set[Configuration]:
        """Every configuration in which the operation has taken effect, with the answer that was given."""
        found: set[Configuration] = set()
        reads = frozenset(each for each in self._pending if self._operations[each].action == "read")
        seen = _Seen(frozenset(each for each in self._pending if self._operations[each].answered_us is None), reads)
        changes = [each for each in self._pending if each not in reads]
        # Those with fewer changes come first, so that what they make needless is never looked at.
        level = {each for each in map(self._with_reads(reads), configurations) if seen.add(each)}
        while level:
            following: set[Configuration] = set()
            for state, effective in level:
                if number in effective:
                    found.add((state, effective - {number}))
                    continue
                for each in changes:
                    after = None if each in effective else self._effect(state, each)
                    if after is None:
                        continue
                    reached = self._with_reads(reads)((after[0], effective | {each}))
                    if seen.add(reached):
                        following.add(reached)
            level = following
        return found

    def _with_reads(self, reads: frozenset[int]) -> Callable[[Configuration], Configuration]:
        """A read that answers what the state is now takes effect now: it changes nothing, and need not come later."""

        def close(configuration: Configuration) -> Configuration:
            state, effective = configuration
            now = [each for each in reads - effective if self._effect(state, each) is not None]
            return (state, effective.union(now)) if now else configuration

        return close

    def _effect(self, state: State, number: int) -> tuple[State] | None:
        """The state after the operation took effect; None when it would have answered something else."""
        self._work += 1
        if self._work > self._work_max:
            raise _TooMuch
        operation = self._operations[number]
        after, result = self._kind.apply(state, operation)
        if operation.answered_us is not None and result != operation.result:
            return None
        return (after,)


class _Seen:
    """Configurations that need no second look. Of two that differ only in unknown operations and reads, one that did
    fewer of those and more of these can do all that the other can: what is unknown may still take effect later, or
    never, and a read that is done asks for nothing more."""

    def __init__(self, unknown: frozenset[int], reads: frozenset[int]) -> None:
        self._unknown = unknown
        self._reads = reads
        self._both = unknown | reads
        self._kept: dict[tuple[State, frozenset[int]], list[tuple[frozenset[int], frozenset[int]]]] = {}

    def add(self, configuration: Configuration) -> bool:
        """False: it is known, or needless."""
        state, effective = configuration
        kept = self._kept.setdefault((state, effective - self._both), [])
        used, done = effective & self._unknown, effective & self._reads
        if any(fewer <= used and more >= done for fewer, more in kept):
            return False
        kept.append((used, done))
        return True
