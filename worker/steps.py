"""What was sent of a step and what came back: one `GroupStep` for the blocks of one group.

Invariants: a block is encoded once, when it is first sent, and its bytes are kept and sent again as they are until the
block is acknowledged (RULES S12); weights come in the codec that was asked for and in no other; blocks are sent in
ascending order, each once it is ready (S5); on a new stream exactly the unacknowledged ones are sent again (S8); an
answer is believed only if it is for this step, in this group, and its bytes have the checksum it names. Must not know:
streams, leaders, other groups.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable

import numpy as np
import numpy.typing as npt

from paramserver.wire.checksum import crc32c
from paramserver.wire.codecs import Codec, Encoded, Values, decode, encode, received
from paramserver.wire.errors import Refusal
from paramserver.wire.frames import BlockFrame, BlockStatus, PushFrame, PushKind
from paramserver.wire.layout import Layout
from worker.errors import ProtocolError, StepPassed


class GroupStep:
    """Blocks `first` to `first + count - 1` of one step.

    `gradient` (elements,) is what is pushed: of the whole model, as wire.layout lays it out, encoded already or not;
    None for kinds without payload. `weights` (elements,) receives the blocks at version step + 1, decoded or as they
    come; None when no weights are wanted (initial values). `codec` and `weights_codec`: in which the two travel. Blocks
    of `empty` are sent as such: this rank has nothing for them (S6). Blocks that are not in `ready` wait, and those
    behind them too; None: all are. Of a checkpoint: `part` is sent, with `scalars` (blocks, numbers). `acknowledged` is
    told of each block that is."""

    def __init__(
        self,
        *,
        step: int,
        first: int,
        count: int,
        layout: Layout,
        kind: PushKind,
        gradient: Values | None,
        weights: Values | None,
        codec: Codec = Codec.FP32,
        weights_codec: Codec = Codec.FP32,
        empty: Container[int] = (),
        ready: Container[int] | None = None,
        part: int = 0,
        scalars: npt.NDArray[np.float64] | None = None,
        acknowledged: Callable[[int], None] = lambda _: None,
    ) -> None:
        if isinstance(gradient, Encoded) and gradient.codec is not codec:
            raise ValueError(f"a gradient in {gradient.codec.name}, where {codec.name} is sent")
        self._part = part
        self._scalars = scalars
        self._acknowledged = acknowledged
        self.step = step
        self.kind = kind
        self._first = first
        self._end = first + count
        self._layout = layout
        self._gradient = gradient
        self._weights = weights
        self._codec = codec
        self._weights_codec = weights_codec
        self._empty = empty
        self._ready = ready
        self._encoded: dict[int, tuple[memoryview, int]] = {}
        """Bytes and CRC of what was sent and is not acknowledged."""
        self._unacknowledged = set(range(first, first + count))
        self._missing: set[int] = set()
        self.duplicates = 0
        """Blocks that had been applied before they came."""
        self._cursor = first

    # --- sending

    def rewind(self) -> None:
        """A new stream: begin again at the lowest unacknowledged block."""
        self._cursor = self._first

    def next_frame(self) -> PushFrame | None:
        """The next block that this stream has not sent yet; None when there is none, or it is not ready."""
        while self._cursor < self._end:
            block = self._cursor
            if self._ready is not None and block not in self._ready:
                return None
            self._cursor += 1
            if block in self._unacknowledged:
                return self._frame(block)
        return None

    def _frame(self, block: int) -> PushFrame:
        want = self._weights is not None
        if self._gradient is None:
            return PushFrame(block=block, step=self.step, kind=self.kind, want_weights=want)
        if block in self._empty:
            return PushFrame(block=block, step=self.step, kind=PushKind.EMPTY, want_weights=want)
        encoded = self._encoded.get(block)
        if encoded is None:
            place = self._layout.block_slice(block)
            if isinstance(self._gradient, Encoded):
                payload = self._gradient.shorts[place].data.cast("B")
            else:
                payload = encode(self._codec, self._gradient[place])
            encoded = self._encoded[block] = (payload, crc32c(payload))
        payload, crc = encoded
        return PushFrame(
            block=block,
            step=self.step,
            kind=self.kind,
            codec=self._codec,
            crc=crc,
            want_weights=want,
            part=self._part,
            scalars=() if self._scalars is None else tuple(self._scalars[block].tolist()),
            payload=payload,
        )

    # --- answers

    def take(self, frame: BlockFrame) -> bool:
        """An answer; True when it acknowledged a block. Answers to other steps are passed over.

        Raises StepPassed when the block is beyond this step, ProtocolError for an answer no server gives.
        """
        if frame.step != self.step or frame.status is BlockStatus.STREAM_OPEN:
            return False
        if not self._first <= frame.block < self._end:
            raise ProtocolError(f"a server answered for block {frame.block}, which is not in its group")
        if self.kind is PushKind.INITIAL:
            if frame.status is not BlockStatus.STORED:
                raise ProtocolError(f"a server answered initial values with {frame.status.name}")
        else:
            self._check_version(frame)
        if frame.block not in self._unacknowledged:
            return False
        # Copied first: an answer whose bytes are damaged acknowledges nothing, and the block is sent again.
        if self._weights is not None:
            if len(frame.payload):
                copy_block(frame, self._layout, self._weights, self._weights_codec)
            else:
                self._missing.add(frame.block)
        self._unacknowledged.discard(frame.block)
        self.duplicates += frame.status is BlockStatus.DUPLICATE
        self._encoded.pop(frame.block, None)
        self._acknowledged(frame.block)
        return True

    def _check_version(self, frame: BlockFrame) -> None:
        if frame.status not in (BlockStatus.APPLIED, BlockStatus.DUPLICATE):
            raise ProtocolError(f"a server answered a push with {frame.status.name}")
        if frame.version > self.step + 1:
            raise StepPassed(
                f"block {frame.block} is at version {frame.version}, this rank pushed step {self.step}",
                "does another process train with this rank? restart this one: it takes up the current step",
            )
        if frame.version <= self.step:
            raise ProtocolError(
                f"block {frame.block} acknowledged for step {self.step} at version {frame.version}",
                f"expected {self.step + 1}",
            )

    # --- what is left

    @property
    def complete(self) -> bool:
        return not self._unacknowledged

    @property
    def unacknowledged(self) -> tuple[int, ...]:
        return tuple(sorted(self._unacknowledged))

    @property
    def without_weights(self) -> tuple[int, ...]:
        """Acknowledged blocks whose answer carried no weights: they are still to be pulled."""
        return tuple(sorted(self._missing))


def copy_block(frame: BlockFrame, layout: Layout, target: Values, codec: Codec = Codec.FP32) -> None:
    """Check the block's bytes, which must be in `codec`, and decode them to their place in `target` (elements,); where
    that is encoded itself, they are put there as they are."""
    if frame.codec is not codec:
        # Other bits than those that the other ranks compute with, or this one after its next start.
        raise ProtocolError(
            f"block {frame.block} from a server: {frame.codec.name}, where {codec.name} was asked for",
            "is every server of a version that knows it?",
        )
    elements = layout.block_elements(frame.block)
    if crc32c(frame.payload) != frame.crc:
        raise ChecksumMismatch(
            f"block {frame.block} at version {frame.version} arrived damaged", "it is asked for again"
        )
    try:
        place = layout.block_slice(frame.block)
        if isinstance(target, Encoded):
            came = received(codec, frame.payload, elements)
            if not isinstance(came, Encoded) or came.codec is not target.codec:
                raise ValueError(f"weights in {codec.name}, where {target.codec.name} is kept")
            np.copyto(target.shorts[place], came.shorts)
        else:
            decode(codec, frame.payload, elements, target[place])
    except Refusal as refusal:
        raise ProtocolError(f"block {frame.block} from a server: {refusal.message}") from None


class ChecksumMismatch(ProtocolError):
    """The bytes of a block changed on the way; asking again is safe."""

    retryable = True


def ranges(blocks: Iterable[int]) -> str:
    """Blocks for people: '0-3, 7'."""
    parts: list[list[int]] = []
    for block in sorted(blocks):
        if parts and block == parts[-1][1] + 1:
            parts[-1][1] = block
        else:
            parts.append([block, block])
    return ", ".join(f"{low}" if low == high else f"{low}-{high}" for low, high in parts)
