"""The open sum of one (block, step), as the sum lane works on it.

Owns the tree sum and the making of the command. Used by the lane only, except `abandoned`, which the host sets once
and for all. Invariants: sums are fp32, whatever contributions are sent in; the last addition goes straight into the
command's buffer, so no value is copied between being added and being written to the log, or, where the model's log has
another codec, is encoded from there, once, for all replicas; the command's CRC is computed once, here. Must not know:
streams, windows, leadership.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np

from paramserver.shard.commands import Buffer, UpdateBlock, encode_update, new_buffer
from paramserver.shard.state import ShardInfo
from paramserver.wire.checksum import crc32c
from paramserver.wire.codecs import (
    LARGEST,
    Codec,
    Values,
    encode,
    finite,
    first_beyond,
    first_non_finite,
    floats,
    received,
)
from paramserver.wire.errors import Reason, Refusal
from paramserver.wire.frames import PushFrame, PushKind
from paramserver.wire.layout import FLOAT, Flat
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
        self._codec = info.create.spec.log_codec
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
        if not last:
            self._tree.add(rank, values)
            return None
        buffer, place = new_buffer(self._elements, self._codec)
        out = place.view(FLOAT) if self._codec is Codec.FP32 else _block(self._elements)
        self._tree.add(rank, values, out)
        if self._tree.empty:
            return self._command(PushKind.EMPTY)
        self._tree.finish(out)
        self._tree = None
        if self._beyond(out):
            return Rejected(None, self._out_of_range(out))
        if self._codec is not Codec.FP32:
            encode(self._codec, out, place)
        return self._command(PushKind.GRADIENT, buffer)

    def _beyond(self, total: Flat) -> bool:
        """Whether the sum, or what the log's codec makes of it, is not finite although it has to be."""
        if self._allowed or (self._ranks == 1 and self._codec is Codec.FP32):
            return False
        return first_beyond(self._codec, total) is not None

    def _checked(self, rank: int, frame: PushFrame) -> Values | None:
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
        values = received(frame.codec, frame.payload, self._elements)
        if not self._allowed and not finite(values):
            raise self._non_finite(floats(values), first_non_finite(values), f"rank {rank}", rank)
        return values

    @property
    def _allowed(self) -> bool:
        return self._info.create.spec.non_finite is NonFinite.ALLOW

    def _out_of_range(self, total: Flat) -> Refusal:
        first = first_beyond(self._codec, total) or 0
        if self._codec is Codec.FP32 or not np.isfinite(total[first]):
            return self._non_finite(total, first, "the sum over all ranks", 0)
        name, largest = self._codec.name.lower(), LARGEST[self._codec]
        hint = f"scale the loss down, or create the model with another log_codec than {name}, such as bf16"
        return self._non_finite(total, first, "the sum over all ranks", 0, f"numbers up to {largest:g} ({name})", hint)

    def _non_finite(
        self,
        values: Flat,
        first: int,
        who: str,
        rank: int,
        expected: str = "finite numbers",
        hint: str = "check the loss; a worker may skip the whole step, or the model's policy may allow it",
    ) -> Refusal:
        layout = self._info.layout
        tensor, place = layout.tensor_at(layout.block_slice(self._block).start + first)
        what = (
            f"{values[first]} from {who} in tensor {tensor!r} element {place} (block {self._block}, step {self._step})"
        )
        return Refusal(
            Reason.NON_FINITE,
            f"gradient: expected {expected}, received {what}",
            field=tensor,
            expected=expected,
            received=what,
            hint=hint,
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
            codec=self._codec,
        )
        self._tree = None
        payload = encode_update(command, buffer)
        return Complete(payload, crc32c(payload))


class _Scratch(threading.local):
    block = np.empty(0, FLOAT)


_scratch = _Scratch()


def _block(elements: int) -> Flat:
    """Where a sum lies until it is encoded: memory of this thread, used again by the next sum."""
    if _scratch.block.size < elements:
        _scratch.block = np.empty(elements, FLOAT)
    return _scratch.block[:elements]
