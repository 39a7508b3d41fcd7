"""What may be wrong with one direction of a link, and what stands on TCP for faults below it.

Owns `Condition`, its limits and its form on the control socket. Must not know: sockets.

What the stand-ins stand for. TCP hides loss and duplication from those who use it; what shows through is imitated:
* `loss`: a lost segment shows as a wait for its retransmission, which holds back everything behind it, and after too
  many in a row as a broken connection. A chunk that is read is "lost" with that probability, again and again: each
  loss waits twice as long as the one before, from RETRANSMIT_MS; LOSSES_MAX in a row break the connection.
* `duplicate`: TCP throws copies away. What can be seen twice is a message whose sender never learned that it arrived:
  the chunk is delivered, then the connection breaks, and who sent it connects and sends again. Drawn with that
  probability for a chunk, at most once in DUPLICATE_EVERY_MS a connection, or nothing would ever get through.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

CLEAR = "clear"
DROP = "drop"
BLACK_HOLE = "black_hole"
RESET = "reset"
CLOG = "clog"
MODES = (CLEAR, DROP, BLACK_HOLE, RESET, CLOG)

RETRANSMIT_MS = 200
"""The least time Linux waits before it sends a segment again."""
LOSSES_MAX = 5
DUPLICATE_EVERY_MS = 250
MS_MAX = 600_000.0
RATE_MIN, RATE_MAX = 1.0, 1e12


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """Of one direction. Without arguments: nothing is wrong."""

    mode: str = CLEAR
    """drop: packets vanish, as behind a wall: connections stay, new ones get no answer, and what was not delivered is
    delivered when the link heals, as TCP sends it again. black_hole: bytes are taken and lost; connections that lost
    some are reset when the link heals. reset: connections are reset and refused. clog: established connections take
    nothing more from their senders, so that these feel back-pressure; new ones are accepted."""
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    """Evenly, as much more or less than `delay_ms`; bytes stay in order."""
    loss: float = 0.0
    duplicate: float = 0.0
    bytes_per_s: float = 0.0
    """0: no limit."""

    def __post_init__(self) -> None:
        problems = self.problems()
        if problems:
            raise ValueError("; ".join(problems))

    def problems(self) -> list[str]:
        problems = []
        if self.mode not in MODES:
            problems.append(f"mode is {self.mode!r}; expected one of {', '.join(MODES)}")
        highest = {"delay_ms": MS_MAX, "jitter_ms": MS_MAX, "loss": 1.0, "duplicate": 1.0}
        for name, most in highest.items():
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value <= most:
                problems.append(f"{name} is {value!r}; expected a number from 0 to {most:g}")
        if not _is_number(self.bytes_per_s) or (self.bytes_per_s != 0 and not RATE_MIN <= self.bytes_per_s <= RATE_MAX):
            problems.append(
                f"bytes_per_s is {self.bytes_per_s!r}; expected {RATE_MIN:g} to {RATE_MAX:g}, or 0 for no limit"
            )
        return problems

    @property
    def passes(self) -> bool:
        """Packets get to the other side."""
        return self.mode in (CLEAR, CLOG)

    @property
    def shaped(self) -> bool:
        """What is forwarded is looked at; else it goes from socket to socket in the kernel."""
        return bool(self.delay_ms or self.jitter_ms or self.loss or self.duplicate or self.bytes_per_s)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Condition:
        known = {field.name for field in fields(cls)}
        odd = sorted(set(found) - known)
        if odd:
            raise ValueError(f"unknown {', '.join(odd)}; expected {', '.join(sorted(known))}")
        return cls(**found)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
