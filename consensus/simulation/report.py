"""What a simulated run came to.

Owns `Report`. Must not know: how the run went about it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from consensus.simulation.errors import Violated


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """`failure` is empty for a good run. The same seed and options give the same report, on every machine."""

    seed: int
    failure: str
    trace_hash: str
    trace: str
    """The last lines of the trace."""
    plan: tuple[str, ...]
    """The faults that were planned, one line each."""
    events: int
    simulated_ms: int
    healed_ms: int
    """How long it took after healing until all was done and equal."""
    terms: int
    """Terms that had a leader, over all groups."""
    acknowledged: int
    """Commands that clients saw confirmed."""
    operations_checked: int = 0
    """Answers to clients that were held against what is promised."""
    faults: dict[str, int] = field(default_factory=dict)
    """How many faults of each kind came."""
    counts: dict[str, int] = field(default_factory=dict)
    """How often what happened."""

    @property
    def ok(self) -> bool:
        return not self.failure

    def text(self) -> str:
        """Everything needed to understand a failure, and the seed that brings it back."""
        head = f"seed {self.seed}: {self.failure or 'fine'}"
        figures = (
            f"{self.events} events, {self.simulated_ms} ms simulated, {self.terms} terms with a leader, "
            f"{self.acknowledged} acknowledged, trace {self.trace_hash}"
        )
        counts = ", ".join(f"{name} {count}" for name, count in sorted({**self.counts, **self.faults}.items()))
        return "\n".join([self.trace, "", *self.plan, "", counts, figures, head])

    def raise_if_failed(self) -> None:
        if self.failure:
            raise Violated("\n" + self.text())
