"""Blocks that nobody touches are looked at too (RULES D1): a bit that flips in memory does not wait for an update.

Owns which block is next, and how fast. Each block is checked against what is known of it: CRCs of both versions,
digest of the whole state. Invariants: every block has a turn within the period while time passes evenly; a turn of the
lane is short (a few blocks), and what was not done in a pause is not made up for. Must not know: what becomes of a
finding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from consensus.runtime.interface import APPLY_LANE, Lanes
from paramserver.shard.digests import Key
from paramserver.shard.state import Shard
from paramserver.wire.checksum import crc32c

BLOCKS_A_TURN = 8
ELAPSED_MS_MAX = 5000
"""Of a longer time nothing more than this counts."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`digest` None: nothing to compare yet. `wrong`: what memory holds is not what was computed."""

    key: Key
    digest: bytes | None
    wrong: str = ""


class Scrubber:
    """Of one group. `shards` is asked for on the lane that applies."""

    def __init__(
        self,
        shards: Callable[[], Mapping[int, Shard]],
        lanes: Lanes,
        *,
        period_ms: int,
        found: Callable[[list[Finding]], None],
    ) -> None:
        self._shards = shards
        self._lanes = lanes
        self._period_ms = period_ms
        self._found = found
        self._cursor = (0, 0)
        """(model, index) of the next block."""
        self._owed = 0.0
        """Turns that time has brought."""
        self._last_ms: int | None = None
        self._busy = False

    def tick(self, now_ms: int) -> None:
        """Time passed; may be called at any rate."""
        elapsed_ms = 0 if self._last_ms is None else min(now_ms - self._last_ms, ELAPSED_MS_MAX)
        self._last_ms = now_ms
        blocks = sum(shard.info.create.blocks for shard in self._shards().values())
        self._owed = min(self._owed + blocks * elapsed_ms / self._period_ms, float(blocks))
        self._next()

    def _next(self) -> None:
        if self._busy or self._owed < 1:
            return
        self._busy = True
        turns = min(int(self._owed), BLOCKS_A_TURN)
        self._owed -= turns
        self._lanes.run(APPLY_LANE, lambda: self.look(turns), self._looked)

    def _looked(self, findings: list[Finding]) -> None:
        self._busy = False
        if findings:
            self._found(findings)
        self._next()

    def look(self, turns: int) -> list[Finding]:
        """On the lane: the next blocks."""
        findings = []
        shards = self._shards()
        for _ in range(turns):
            at = self._advance(shards)
            if at is None:
                break
            model, index = at
            findings.append(check_block(shards[model], index))
        return findings

    def _advance(self, shards: Mapping[int, Shard]) -> tuple[int, int] | None:
        model, index = self._cursor
        order = sorted(shards)
        if not order:
            return None
        if model not in shards or index >= shards[model].info.create.blocks:
            model, index = next((each for each in order if each > model), order[0]), 0
        self._cursor = (model, index + 1)
        return model, index


def check_block(shard: Shard, index: int) -> Finding:
    """What memory holds of a block now, against what was noted when it was computed."""
    create, block = shard.info.create, shard.published[index]
    key = (create.model, create.first_block + index, block.version)
    known = block.digest_of(block.version)
    for values, expected, name in (
        (block.weights, block.crc, "weights"),
        (block.previous, block.previous_crc, "weights of the version before"),
    ):
        if values is not None and crc32c(values.data.cast("B")) != expected:
            return Finding(key, None, f"the {name} changed in memory")
    if known is not None and shard.state_digest(index, block.version, block.weights) != known:
        return Finding(key, None, "its optimizer state changed in memory")
    return Finding(key, known)
