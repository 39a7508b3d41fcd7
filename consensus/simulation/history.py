"""What clients of one group asked for and were answered, and whether it fits together.

Owns the promises: the place of each line, and the histories of the register and the counter. Invariants checked at the
end: every acknowledged line stands where its answer said, none twice; what was acknowledged before something was asked
for stands before it; the histories are linearizable. Must not know: clients, replication.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from consensus.core.interface import GroupId
from consensus.simulation.errors import Violated
from consensus.simulation.ledger import Ledger
from consensus.simulation.linearizability import FOREVER, Answer, Counter, Operation, Register, check

SHOWN = 25
"""Operations of a history that are shown before and with the one that nothing explains."""


@dataclass(frozen=True, slots=True)
class Line:
    """An acknowledged line. Times in microseconds of virtual time."""

    client: int
    sequence: int
    position: int
    asked_us: int
    acknowledged_us: int


class History:
    """Of one group."""

    def __init__(self, group: GroupId) -> None:
        self.group = group
        self.undecided = 0
        """Histories that took too much work to judge."""
        self._lines: dict[tuple[int, int], Line] = {}
        self._register: list[Operation] = []
        self._counter: list[Operation] = []
        self._unknown: list[tuple[int, int, Operation]] = []
        """(client, sequence, operation) of those who crashed before they heard of an outcome."""

    @property
    def acknowledged(self) -> int:
        return len(self._lines)

    @property
    def operations(self) -> int:
        """Answers that were, or will be, checked."""
        return len(self._lines) + sum(each.action == "read" for each in (*self._register, *self._counter))

    def promised(self, line: Line) -> bool:
        """An answer named the place of a line. False: another answer did before."""
        known = self._lines.setdefault((line.client, line.sequence), line)
        if known.position != line.position:
            raise Violated(f"group {self.group}: {line} was promised another position before: {known}")
        return known is line

    def change(self, operation: Operation) -> None:
        """A write of the register, or an addition to the counter, with its answer."""
        (self._register if operation.action == "write" else self._counter).append(operation)

    def unknown(self, client: int, sequence: int, operation: Operation) -> None:
        """The client will never know, nor ask again."""
        self._unknown.append((client, sequence, operation))

    def read(self, register: int, counter: int, asked_us: int, answered_us: int, who: str) -> None:
        """One read of both, which are judged apart."""
        self._register.append(Operation("read", None, register, asked_us, answered_us, who))
        self._counter.append(Operation("read", None, counter, asked_us, answered_us, who))

    # --- judging ----------------------------------------------------------------------------------------------------

    def check(self, ledger: Ledger) -> None:
        """Against the state that all replicas agree on. Raises `Violated`."""
        if len(set(ledger.lines)) != len(ledger.lines):
            twice = sorted({line for line in ledger.lines if ledger.lines.count(line) > 1})
            raise Violated(f"group {self.group}: lines stand twice: {twice}")
        for line in self._lines.values():
            found = ledger.lines[line.position] if line.position < len(ledger.lines) else None
            if found != (line.client, line.sequence):
                raise Violated(f"group {self.group}: {line} was acknowledged, but {found} stands there")
        self._check_order()
        self._resolve(ledger)
        self._check_history("register", self._register, Register())
        self._check_history("counter", self._counter, Counter())

    def _resolve(self, ledger: Ledger) -> None:
        """Whether what crashed clients asked for was done at last, the state tells: histories that leave it open take
        the checker very long."""
        for client, sequence, operation in self._unknown:
            last, _, answered = ledger.last.get(client, (0, 0, 0))
            if last == sequence:
                result = answered if operation.action == "add" else None
                self.change(replace(operation, result=result, answered_us=FOREVER))
        self._unknown.clear()

    def _check_order(self) -> None:
        """What was acknowledged before another line was asked for stands before it."""
        by_end = sorted(self._lines.values(), key=lambda line: line.acknowledged_us)
        ended, highest = 0, -1
        for line in sorted(self._lines.values(), key=lambda line: line.asked_us):
            while by_end[ended].acknowledged_us < line.asked_us:
                highest = max(highest, by_end[ended].position)
                ended += 1
            if line.position < highest:
                raise Violated(f"group {self.group}: {line} stands before one at {highest} acknowledged earlier")

    def _check_history(self, name: str, history: list[Operation], kind: Register | Counter) -> None:
        verdict = check(history, kind)
        if verdict.answer is Answer.UNDECIDED:
            self.undecided += 1
        if verdict.answer is not Answer.NOT or verdict.stuck is None:
            return
        until = verdict.stuck.answered_us or 0
        near = sorted((each for each in history if each.asked_us <= until), key=lambda each: each.asked_us)[-SHOWN:]
        lines = "\n".join(f"{'>' if each is verdict.stuck else ' '} {each.describe()}" for each in near)
        raise Violated(
            f"group {self.group}: the history of the {name} is not linearizable; nothing explains >\n{lines}"
        )
