"""The replicated state of one shard: what it is made of, and what other threads may look at.

Owns blocks in memory. The lane that applies is the only writer. `Shard.info` and each item of `Shard.published` are
immutable values that are replaced, never changed, so any thread may read them at any time; the rest belongs to the
lane. Invariants (RULES S6, R6, D1): a block keeps its weights and those of the version before; a weights buffer is
never written once published, it is freed when the last holder drops it; the last 8 digests of a block are kept. What
is published besides, weights in other codecs, is no state: each replica may have other ones. Must not know: logs,
streams.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace

import numpy as np

from paramserver.optim.factory import make
from paramserver.optim.interface import Optimizer, Update
from paramserver.shard.commands import CreateShard, Loaded, Target, UpdateBlock
from paramserver.shard.forms import Forms
from paramserver.shard.loans import Loan, Loans
from paramserver.shard.steps import NO_STEPS, Pin, RateFrom, Steps
from paramserver.wire.checksum import crc32c, digest
from paramserver.wire.codecs import Codec
from paramserver.wire.layout import FLOAT, Flat, Layout
from paramserver.wire.protos import View
from paramserver.wire.spec import Reduction

DIGESTS_KEPT = 8
"""A block."""


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """What a shard is, apart from its numbers. `open_epoch` None: initial values may still come."""

    create: CreateShard
    layout: Layout
    view: View
    open_epoch: int | None = None
    steps: Steps = NO_STEPS

    @property
    def is_open(self) -> bool:
        return self.open_epoch is not None

    @property
    def first_version(self) -> int:
        """Of its blocks, before any update."""
        return self.create.loaded.step if self.create.loaded is not None else 0

    def index_of(self, block: int) -> int | None:
        """Place of a block in this shard; None when another group has it."""
        index = block - self.create.first_block
        return index if 0 <= index < self.create.blocks else None


@dataclass(frozen=True, slots=True)
class Published:
    """One block as everybody may see it. Without `weights`: no initial values yet. `previous` are version - 1's."""

    version: int = 0
    weights: Flat | None = None
    crc: int = 0
    previous: Flat | None = None
    previous_crc: int = 0
    digests: tuple[tuple[int, bytes], ...] = ()
    forms: Forms | None = field(default=None, compare=False, repr=False)
    """`weights` in the codecs that were asked for; they go when the next version comes."""

    def __post_init__(self) -> None:
        if self.forms is None and self.weights is not None:
            object.__setattr__(self, "forms", Forms(self.weights, self.crc))

    def at(self, version: int) -> tuple[Flat, int] | None:
        """(weights, crc) of exactly that version, None where it is not kept."""
        if version == self.version and self.weights is not None:
            return self.weights, self.crc
        if version == self.version - 1 and self.previous is not None:
            return self.previous, self.previous_crc
        return None

    def forms_at(self, version: int) -> Forms | None:
        """Exactly that version, None where it is not kept."""
        if version == self.version:
            return self.forms
        kept = self.at(version)
        return None if kept is None else Forms(*kept)

    def digest_of(self, version: int) -> bytes | None:
        return next((known for number, known in self.digests if number == version), None)


@dataclass(frozen=True, slots=True)
class Private:
    """The lane's own part of a block. The value is replaced; the slots are overwritten by each update, unless a
    snapshot borrowed them (RULES W6)."""

    slots: tuple[Flat, ...] = ()
    scalars: tuple[float, ...] = ()
    initial_epoch: int = 0
    parts: int = 0
    """Bit n: part n of what the init lease's holder sends is here."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A block as it was at a pinned version: weights and slots are never written again. Any thread may read it."""

    version: int
    weights: Flat
    crc: int
    slots: tuple[Flat, ...] = ()
    scalars: tuple[float, ...] = ()

    @property
    def nbytes(self) -> int:
        return self.weights.nbytes * (1 + len(self.slots))


class Shard:
    """One model's blocks in this group."""

    __slots__ = ("_loans", "_optimizer", "info", "kept", "private", "published", "wanted")

    def __init__(self, info: ShardInfo) -> None:
        self.info = info
        self.published: list[Published] = [Published(info.first_version) for _ in range(info.create.blocks)]
        self.private: list[Private] = [Private() for _ in range(info.create.blocks)]
        self.kept: list[Kept | None] = [None] * info.create.blocks
        """Each block's pinned version, once it got there. Any thread may read it."""
        self._loans: list[Loan] | None = None
        """Of the snapshot being written, a block each; on the lane only."""
        self.wanted: frozenset[Codec] = frozenset()
        """Codecs in which ranks wait for the next version: it is encoded while it is in cache. The host's thread
        replaces it; what it holds decides about no bit."""
        self._optimizer: Optimizer = make(info.create.spec.optimizer)

    @property
    def lowest_version(self) -> int:
        return min(block.version for block in self.published)

    @property
    def highest_version(self) -> int:
        return max(block.version for block in self.published)

    @property
    def slots(self) -> int:
        """fp32 arrays a block has beside its weights."""
        return self._optimizer.slots

    def elements(self, index: int) -> int:
        return self.info.layout.block_elements(self.info.create.first_block + index)

    def part_problem(self, part: int, scalars: tuple[float, ...], *, loaded: bool) -> str:
        """Why this shard takes no such values; empty when it does."""
        wanted = self.info.create.loaded is not None
        if loaded is not wanted:
            return "they are of a checkpoint" if loaded else "its values come from a checkpoint"
        numbers = len(self._optimizer.scalars) if wanted and part == 0 else 0
        if part > (self._optimizer.slots if wanted else 0) or len(scalars) != numbers:
            return f"part {part} with {len(scalars)} numbers"
        return ""

    def whole(self, index: int, epoch: int) -> bool:
        """All that the first version of a block is made of came under that epoch."""
        wanted = (1 << 1 + self._optimizer.slots) - 1 if self.info.create.loaded is not None else 1
        private = self.private[index]
        return self.published[index].weights is not None and (private.initial_epoch, private.parts) == (epoch, wanted)

    def fill(self, index: int, part: int, values: Flat, epoch: int) -> bool:
        """The optimizer's array of that number, behind the block's weights; False where these are not of that epoch."""
        private = self.private[index]
        if private.initial_epoch != epoch or not private.parts & 1:
            return False
        slot = values.astype(FLOAT)
        self._let_go(index, (private.slots[part - 1],))
        slots = (*private.slots[: part - 1], slot, *private.slots[part:])
        self.private[index] = replace(private, slots=slots, parts=private.parts | 1 << part)
        return True

    def initialise(self, index: int, values: Flat, epoch: int, scalars: tuple[float, ...] = ()) -> None:
        """The first version of a block, from `values` (copied). What came under the same epoch beside it stays."""
        weights = values.astype(FLOAT)
        weights.flags.writeable = False
        optimizer, before = self._optimizer, self.private[index]
        numbers = scalars or optimizer.scalars
        if before.parts and before.initial_epoch == epoch:
            self._let_go(index, _buffers(self.published[index]))
            self.private[index] = replace(before, scalars=numbers)
        else:
            self._let_go(index, (*_buffers(self.published[index]), *before.slots))
            slots = tuple(np.zeros(weights.size, FLOAT) for _ in range(optimizer.slots))
            self.private[index] = Private(slots, numbers, epoch, parts=1)
        self.published[index] = Published(self.info.first_version, weights, crc32c(weights.data.cast("B")))

    def open(self, epoch: int) -> None:
        """Take no more initial values. From here on digests are comparable between replicas."""
        for index, block in enumerate(self.published):
            first = (block.version, self.state_digest(index, block.version, block.weights))
            self.published[index] = replace(block, digests=(first,))
        self.info = replace(self.info, open_epoch=epoch)

    def set_view(self, view: View) -> None:
        self.info = replace(self.info, view=view)

    def set_steps(self, steps: Steps) -> None:
        if steps.pin != self.info.steps.pin:
            # Before the pin is to be seen: who sees it must not wait for what is there already.
            self.kept = [self._pinned(index, steps.pin) for index in range(len(self.published))]
        self.info = replace(self.info, steps=steps)

    def _pinned(self, index: int, pin: Pin | None) -> Kept | None:
        """If the block is at the pinned version now: by reference, the next update writes beside it."""
        block, private = self.published[index], self.private[index]
        if pin is None or block.version != pin.step or block.weights is None:
            return None
        return Kept(block.version, block.weights, block.crc, private.slots, private.scalars)

    def update(self, index: int, command: UpdateBlock) -> Published:
        """Version + 1 by the optimizer; returns what is published now."""
        block, private = self.published[index], self.private[index]
        if block.weights is None or command.values is None:
            raise ValueError("an update needs weights and values")
        out = self._fresh(block)
        slots_out = self._slots_out(index, private)
        mean = self.info.create.spec.reduction is Reduction.MEAN
        own = command.learning_rate
        scalars = self._optimizer.update(
            Update(
                weights=block.weights,
                gradient=command.values,
                count=command.count if mean else 1,
                slots=private.slots,
                scalars=private.scalars,
                out=out,
                slots_out=slots_out,
                learning_rate=self.info.steps.rate_at(command.step) if own is None else own,
            )
        )
        if slots_out is not private.slots:
            self._let_go(index, private.slots)
        self.private[index] = Private(slots_out, scalars, private.initial_epoch, private.parts)
        return self._publish(index, out, crc32c(out.data.cast("B")))

    def pass_over(self, index: int) -> Published:
        """Version + 1 and nothing else, for a skip or an empty step."""
        block = self.published[index]
        if block.weights is None:
            raise ValueError("a block without weights has no next version")
        return self._publish(index, block.weights, block.crc, block.forms)

    def _fresh(self, block: Published) -> Flat:
        """Where the next version goes: memory that nobody else can see."""
        return np.empty(block.weights.shape if block.weights is not None else 0, FLOAT)

    def _slots_out(self, index: int, private: Private) -> tuple[Flat, ...]:
        """Where the next slots go: in place, or beside those that a snapshot or a pin still needs (RULES W6, R4)."""
        kept = self.kept[index]
        if kept is not None and any(one is other for one in kept.slots for other in private.slots):
            return tuple(np.empty_like(slot) for slot in private.slots)
        if self._loans is None or not self._loans[index].borrowed(private.slots):
            return private.slots
        return tuple(np.empty_like(slot) for slot in private.slots)

    def _publish(self, index: int, weights: Flat, crc: int, forms: Forms | None = None) -> Published:
        before = self.published[index]
        if before.previous is not None and before.previous is not before.weights:
            self._let_go(index, (before.previous,))
        weights.flags.writeable = False
        version = before.version + 1
        known = (*before.digests[1 - DIGESTS_KEPT :], (version, self.state_digest(index, version, weights)))
        now = Published(version, weights, crc, before.weights, before.crc, known, forms)
        if now.forms is not None:
            for codec in self.wanted:
                now.forms.make(codec)
        self.published[index] = now
        if self.info.steps.pin is not None and version == self.info.steps.pin.step:
            self.kept[index] = self._pinned(index, self.info.steps.pin)
        return now

    def state_digest(self, index: int, version: int, weights: Flat | None) -> bytes:
        """xxh3-128 of all that the next update of this block depends on (RULES D1)."""
        private = self.private[index]
        tail = struct.pack(f"<Q{len(private.scalars)}d", version, *private.scalars)
        arrays = () if weights is None else (weights, *private.slots)
        return digest((*(array.data.cast("B") for array in arrays), tail))

    # --- snapshots -------------------------------------------------------------------------------------------------

    def lend(self, loans: Loans) -> list[Loan]:
        """A snapshot borrows all blocks as they are now."""
        self._loans = [
            Loan(loans, (*_buffers(seen), *own.slots)) for seen, own in zip(self.published, self.private, strict=True)
        ]
        return self._loans

    def end_loans(self) -> None:
        self._loans = None

    def drop(self) -> None:
        """The state holds nothing of it any more; a snapshot being written may."""
        for index, (seen, own) in enumerate(zip(self.published, self.private, strict=True)):
            self._let_go(index, (*_buffers(seen), *own.slots))

    def would_cost(self, index: int, target: Target) -> int:
        """Bytes that the snapshot being written would cost more after a command about that block."""
        if self._loans is None:
            return 0
        block, private = self.published[index], self.private[index]
        dropped = private.slots if target.initial or target.gradient else ()
        if target.initial and block.weights is not None:
            dropped = (*dropped, block.weights)
        if block.previous is not None and block.previous is not block.weights:
            dropped = (*dropped, block.previous)
        return self._loans[index].would_cost(dropped)

    def _let_go(self, index: int, buffers: tuple[Flat, ...]) -> None:
        if self._loans is not None:
            self._loans[index].dropped(buffers)

    def weight_bytes(self) -> int:
        """Of one version."""
        create, layout = self.info.create, self.info.layout
        first = create.first_block
        elements = layout.block_slice(first + create.blocks - 1).stop - layout.block_slice(first).start
        return int(elements) * FLOAT.itemsize

    def size_bytes(self) -> int:
        """Weights, the version before, and slots, as if every block had them all."""
        return self.weight_bytes() * (2 + self._optimizer.slots) + self.kept_bytes()

    def kept_bytes(self) -> int:
        """Of the pinned version, shared with the present one or not."""
        return sum(one.nbytes for one in self.kept if one is not None)


def _buffers(block: Published) -> tuple[Flat, ...]:
    held = (block.weights, block.previous if block.previous is not block.weights else None)
    return tuple(buffer for buffer in held if buffer is not None)


def new_shard(create: CreateShard) -> Shard:
    """A shard without values; its view has number 0 and holds no rank."""
    view = View(0, 0, (0,) * create.spec.ranks)
    return Shard(ShardInfo(create, Layout(create.spec), view, steps=_first_steps(create.loaded)))


def _first_steps(loaded: Loaded | None) -> Steps:
    if loaded is None:
        return NO_STEPS
    rates = tuple(RateFrom(step, rate) for step, rate in loaded.rates)
    return Steps(rate_number=len(rates), rates=rates)
