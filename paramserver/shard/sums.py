"""The open sum of one (block, step), as the sum lane works on it.

Owns the tree sum and the making of the command. Used by the lane only, except `abandoned`, which the host sets once
and for all. Invariants: the last addition goes straight into the command's buffer, so no value is copied between being
added and being written to the log; the command's CRC is computed once, here. Must not know: streams, windows,
leadership.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paramserver.shard.commands import Buffer, UpdateBlock, encode_update, new_buffer
from paramserver.shard.state import ShardInfo
from paramserver.wire.checksum import crc32c
from paramserver.wire.codecs import decode
from paramserver.wire.errors import Reason, Refusal
from paramserver.wire.frames import PushFrame, PushKind
from paramserver.wire.layout import Flat
from paramserver.wire.spec import NonFinite
from paramserver.wire.tree import TreeSum


@dataclass(frozen=True, slots=True)
class Complete:
    """Every rank's contribution is in: the command and its CRC32C."""

    payload: memoryview
    crc: int


@dataclass(frozen=True, slots=True)
class Rejected:
    """A contribution that does not count, or (`rank` None) a sum that left the range of float32."""

    rank: int | None
    refusal: Refusal


class OpenSum:
    """One contribution a rank of the view, in any order."""

    def __init__(self, info: ShardInfo, block: int, step: int) -> None:
        self.abandoned = False
        self._info = info
        self._block = block
        self._step = step
        self._ranks = info.create.spec.ranks
        self._elements = info.layout.block_elements(block)
        self._tree: TreeSum | None = TreeSum(self._ranks)
        self._arrived = 0

    def take(self, rank: int, frame: PushFrame) -> Complete | Rejected | None:
        """Add a rank's contribution. None while others are missing (or when nobody wants the sum any more)."""
        if self.abandoned:
            return None
        with np.errstate(all="ignore"):
            return self._take(rank, frame)

    def _take(self, rank: int, frame: PushFrame) -> Complete | Rejected | None:
        try:
            values = self._checked(rank, frame)
        except Refusal as refusal:
            return Rejected(rank, refusal)
        self._arrived += 1
        last = self._arrived == self._ranks
        if frame.kind is PushKind.SKIP:
            self._tree = None  # one skip makes the step a skip: what was added is of no use
        if self._tree is None:
            return self._command(PushKind.SKIP) if last else None
        buffer, out = new_buffer(self._elements) if last else (None, None)
        self._tree.add(rank, values, out)
        if buffer is None or out is None:
            return None
        if self._tree.empty:
            return self._command(PushKind.EMPTY)
        self._tree.finish(out)
        self._tree = None
        if self._ranks > 1 and not self._finite(out):
            return Rejected(None, self._non_finite(out, "the sum over all ranks", 0))
        return self._command(PushKind.GRADIENT, buffer)

    def _checked(self, rank: int, frame: PushFrame) -> Flat | None:
        if frame.kind is not PushKind.GRADIENT:
            return None
        # The CRC also guards what lies between here and the worker's memory; TCP's checksum is weak.
        if (found := crc32c(frame.payload)) != frame.crc:
            raise Refusal(
                Reason.CHECKSUM,
                f"block {frame.block} of step {frame.step}: the payload's CRC32C is {found:#010x}, "
                f"the header says {frame.crc:#010x}",
                field="crc",
                expected=f"{found:#010x}",
                received=f"{frame.crc:#010x}",
                rank=rank,
            )
        values = decode(frame.codec, frame.payload, self._elements)
        if not self._finite(values):
            raise self._non_finite(values, f"rank {rank}", rank)
        return values

    def _finite(self, values: Flat) -> bool:
        return self._info.create.spec.non_finite is NonFinite.ALLOW or bool(np.isfinite(values).all())

    def _non_finite(self, values: Flat, who: str, rank: int) -> Refusal:
        first = int(np.argmin(np.isfinite(values)))
        layout = self._info.layout
        tensor, place = layout.tensor_at(layout.block_slice(self._block).start + first)
        what = (
            f"{values[first]} from {who} in tensor {tensor!r} element {place} (block {self._block}, step {self._step})"
        )
        return Refusal(
            Reason.NON_FINITE,
            f"gradient: expected finite numbers, received {what}",
            field=tensor,
            expected="finite numbers",
            received=what,
            hint="check the loss; a worker may skip the whole step, or the model's policy may allow it",
            rank=rank,
        )

    def _command(self, kind: PushKind, buffer: Buffer | None = None) -> Complete:
        info = self._info
        command = UpdateBlock(
            model=info.create.model,
            generation=info.create.generation,
            view=info.view.number,
            block=self._block,
            step=self._step,
            kind=kind,
            contributors=(1 << self._ranks) - 1,
            count=self._ranks,
            elements=self._elements,
        )
        self._tree = None
        payload = encode_update(command, buffer)
        return Complete(payload, crc32c(payload))
