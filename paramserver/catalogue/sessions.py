"""Sessions of clients and what they were answered, so that a command sent again has no second effect (RULES A4).

Invariants: session ids are never reused; of each session the latest answers are kept, and a sequence number below those
is refused, never applied again; the table is bounded: the least recently used session without a lease goes first, and
is from then on refused as unknown (RULES A2). All of it is replicated state. Must not know: what commands mean.
"""

from __future__ import annotations

import hmac
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from paramserver.catalogue.state import SessionId
from paramserver.wire.errors import Reason, Refusal

SESSIONS_MAX = 8192
"""Sessions kept. At the bound the least recently used one that holds no lease is forgotten."""
ANSWERS_MAX = 16
"""Latest answers kept of a session: a client may have that many commands on their way."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command came to. A refusal (`ok` False) names its `reason` (wire/errors.py). `value`: the id or epoch that
    was given; `holder`: the session that stands in the way."""

    ok: bool
    reason: str = ""
    message: str = ""
    value: int = 0
    view: int = 0
    holder: SessionId = 0


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, with the proof. `secret_digest`: sha-256 of the secret it sent."""

    session: SessionId
    sequence: int
    secret_digest: bytes


class NotApplied(Refusal):
    """Apply said no to a command, in `answer`."""

    def __init__(self, answer: Answer) -> None:
        reason = Reason(answer.reason)
        code = "FAILED_PRECONDITION" if reason is Reason.OUT_OF_ORDER else None
        super().__init__(reason, answer.message, code=code, epoch=answer.value)
        self.answer = answer


def refusal(reason: str, message: str, *, holder: SessionId = 0, value: int = 0) -> Answer:
    return Answer(ok=False, reason=reason, message=message, holder=holder, value=value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """`client`: 16 random bytes of its process's choosing; `secret_digest`: sha-256 of its secret."""

    session: SessionId
    client: bytes
    secret_digest: bytes
    name: str
    answers: tuple[tuple[int, Answer], ...] = ()
    """(sequence, answer) in the order in which they were given."""
    forgotten: int = 0
    """The highest sequence number whose answer is no longer kept."""

    def owns(self, secret_digest: bytes) -> bool:
        return hmac.compare_digest(self.secret_digest, secret_digest)

    def answered(self, sequence: int) -> Answer | None:
        return next((answer for number, answer in self.answers if number == sequence), None)

    def with_answer(self, sequence: int, answer: Answer) -> Session:
        answers = (*self.answers, (sequence, answer))
        dropped, kept = answers[:-ANSWERS_MAX], answers[-ANSWERS_MAX:]
        forgotten = max([self.forgotten, *(number for number, _ in dropped)])
        return replace(self, answers=kept, forgotten=forgotten)


class Sessions:
    """The table, least recently used first. Changed by apply only; `get` may be called from any thread."""

    def __init__(self, sessions_max: int = SESSIONS_MAX) -> None:
        self._sessions_max = sessions_max
        self._by_id: OrderedDict[SessionId, Session] = OrderedDict()
        self._by_client: dict[bytes, SessionId] = {}
        self.next_session: SessionId = 1

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._by_id.values())

    def get(self, session: SessionId) -> Session | None:
        return self._by_id.get(session)

    def find(self, client: bytes) -> Session | None:
        session = self._by_client.get(client)
        return None if session is None else self._by_id[session]

    def open(
        self, *, client: bytes, secret_digest: bytes, name: str, in_use: Callable[[SessionId], bool]
    ) -> Session | None:
        """A new session, or None when the table is full of sessions that are `in_use`."""
        if len(self._by_id) >= self._sessions_max:
            idle = next((session for session in self._by_id if not in_use(session)), None)
            if idle is None:
                return None
            del self._by_client[self._by_id.pop(idle).client]
        opened = Session(session=self.next_session, client=client, secret_digest=secret_digest, name=name)
        self.next_session += 1
        self.put(opened)
        return opened

    def put(self, session: Session) -> None:
        """Store, as the most recently used."""
        self._by_id[session.session] = session
        self._by_id.move_to_end(session.session)
        self._by_client[session.client] = session.session
