"""What is pushed: one line of a table, the same for every system.

Owns the units: a model of N MB has N * 2**20 bytes; MB/s and GB are powers of ten (RULES F2 counts fp32 bytes,
whatever the codec sends). Must not know: systems.
"""

from __future__ import annotations

from dataclasses import dataclass

LEARNING_RATE = 1e-3
SEED = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`workers` ranks push a gradient of the model and pull the new weights, step by step."""

    model_mb: int
    workers: int
    codec: str = "fp32"

    @property
    def model_bytes(self) -> int:
        return self.model_mb << 20

    @property
    def elements(self) -> int:
        return self.model_bytes // 4

    @property
    def step_bytes(self) -> int:
        """Pushed and pulled in one step, over all workers, as fp32."""
        return 2 * self.model_bytes * self.workers

    @property
    def name(self) -> str:
        """As in the names of ratios."""
        return f"{self.codec}_{self.model_mb}mb_w{self.workers}"
