"""Pulls: one version of a block, from any replica that has it (RULES R1).

Owns the waiters of a group. Invariants: an exact version is answered by exactly these bits, waited for, or GONE; a
minimum version by committed state at least that new; the number of waiters is bounded, deadlines are the caller's. Runs
on the host's thread and reads only what is published. Must not know: leaders, gRPC.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from paramserver.shard.deleted import NOTHING_DELETED, Deleted
from paramserver.shard.forms import Forms
from paramserver.shard.options import LeaderOptions
from paramserver.shard.state import Shard
from paramserver.wire.checksum import crc32c
from paramserver.wire.codecs import Codec
from paramserver.wire.errors import Reason, Refusal, invalid

SERVED_KEPT = 8
"""Versions of a block whose pulls are counted; older ones are forgotten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRead:
    """Which block, and which version of it: exactly `version`, or at least `min_version` (exactly one is given)."""

    model: int
    generation: int
    placement_epoch: int
    block: int
    version: int | None = None
    min_version: int | None = None
    part: int = 0
    """0: its weights; n: the optimizer's n-th array, which only a pinned version has."""


@dataclass(frozen=True, slots=True)
class Value:
    """That version of a block. `payload` and `crc`: of its fp32 bytes. `scalars`: of its optimizer, if it is pinned."""

    version: int
    forms: Forms
    scalars: tuple[float, ...] = ()

    @property
    def payload(self) -> memoryview:
        return self.forms.make(Codec.FP32).payload

    @property
    def crc(self) -> int:
        return self.forms.make(Codec.FP32).crc


class Waiter:
    """A read whose version is not here yet. `wake` is called once when it may be; then read again. `behind`: so many
    updates are missing."""

    __slots__ = ("_reads", "behind", "key", "version", "wake")

    def __init__(self, reads: Reads, key: tuple[int, int], version: int, behind: int, wake: Callable[[], None]) -> None:
        self._reads = reads
        self.behind = behind
        self.key = key
        self.version = version
        self.wake = wake

    def cancel(self) -> None:
        """Harmless after waking."""
        self._reads.forget(self)


class Reads:
    def __init__(
        self,
        shards: Callable[[], Mapping[int, Shard]],
        options: LeaderOptions,
        *,
        deleted: Callable[[], Deleted] = lambda: NOTHING_DELETED,
    ) -> None:
        self._deleted = deleted
        self._shards = shards
        self._options = options
        self._waiters: dict[tuple[int, int], list[Waiter]] = {}
        self.waiting = 0
        self._served: dict[tuple[int, int], dict[int, int]] = {}
        """(model, block) -> pulls answered, by version; the newest few versions."""

    def served_since(self, model: int, block: int, version: int) -> str:
        """What was answered of a block above that version, for people."""
        pulls = {at: count for at, count in self._served.get((model, block), {}).items() if at > version}
        if not pulls:
            return "none of it was pulled from here since"
        return f"{sum(pulls.values())} pulls here were answered with versions {min(pulls)} to {max(pulls)} since"

    def _note_served(self, want: BlockRead, version: int) -> None:
        pulls = self._served.setdefault((want.model, want.block), {})
        pulls[version] = pulls.get(version, 0) + 1
        if len(pulls) > SERVED_KEPT:
            del pulls[min(pulls)]

    def read(self, want: BlockRead, wake: Callable[[], None], *, certain: bool = False) -> Value | Waiter:
        """The value, or a waiter. `certain`: this replica leads, so what it does not know does not exist; others may
        only be behind. Raises `Refusal`."""
        if (want.version is None) == (want.min_version is None):
            raise invalid("want", "version or min_version", "both or none")
        shard, index = self._find(want, certain=certain)
        block = shard.published[index]
        if want.version is not None and (pinned := _pinned(shard, index, want)) is not None:
            return pinned
        if want.part:
            if want.version is None or shard.info.steps.pin is None or shard.info.steps.pin.step != want.version:
                raise _not_pinned(want, block.version)
        elif want.version is not None and want.version <= block.version:
            kept = block.forms_at(want.version)
            if kept is None:
                raise Refusal(
                    Reason.GONE,
                    f"block {want.block}: version {want.version} is no longer kept, now is {block.version}",
                    field="version",
                    expected=f"{max(block.version - 1, 0)} or later",
                    received=str(want.version),
                    version=block.version,
                )
            self._note_served(want, want.version)
            return Value(want.version, kept)
        if want.min_version is not None and want.min_version <= block.version and block.forms is not None:
            self._note_served(want, block.version)
            return Value(block.version, block.forms)
        return self._wait(
            want, want.version if want.version is not None else want.min_version or 0, block.version, wake
        )

    def _find(self, want: BlockRead, *, certain: bool) -> tuple[Shard, int]:
        shard = self._shards().get(want.model)
        if shard is None or shard.info.create.generation != want.generation:
            if not certain and not self._deleted().has(want.model):
                raise Refusal(Reason.NOT_READY, f"this replica does not know model {want.model} yet", field="model")
            raise unknown_model(0, want.model, want.generation)
        info = shard.info
        if want.placement_epoch != info.create.placement_epoch:
            if want.placement_epoch > info.create.placement_epoch and not certain:
                raise Refusal(
                    Reason.NOT_READY,
                    "this replica is behind that placement",
                    field="placement_epoch",
                    received=str(want.placement_epoch),
                    epoch=info.create.placement_epoch,
                )
            raise stale_epoch(info.create.placement_epoch, want.placement_epoch)
        index = info.index_of(want.block)
        if index is None:
            create = info.create
            last = create.first_block + create.blocks - 1
            raise invalid(
                "blocks", f"{create.first_block} to {last} in this group", want.block, reason=Reason.NOT_FOUND
            )
        if not info.is_open:
            raise not_open(want.model)
        return shard, index

    def _wait(self, want: BlockRead, version: int, now: int, wake: Callable[[], None]) -> Waiter:
        if self.waiting >= self._options.waiters_max:
            raise Refusal(
                Reason.BUSY,
                f"{self.waiting} pulls are waiting already",
                hint="pull fewer versions ahead of time",
                retry_after_ms=self._options.retry_after_ms,
            )
        waiter = Waiter(self, (want.model, want.block), version, version - now, wake)
        self._waiters.setdefault(waiter.key, []).append(waiter)
        self.waiting += 1
        return waiter

    def forget(self, waiter: Waiter) -> None:
        waiters = self._waiters.get(waiter.key, [])
        if waiter in waiters:
            waiters.remove(waiter)
            self.waiting -= 1
            if not waiters:
                del self._waiters[waiter.key]

    def ready(self, model: int, block: int, version: int) -> list[Callable[[], None]]:
        """The block is at `version`: whom to wake."""
        waiters = self._waiters.get((model, block))
        if not waiters:
            return []
        due = [waiter for waiter in waiters if waiter.version <= version]
        for waiter in due:
            self.forget(waiter)
        return [waiter.wake for waiter in due]

    def of(self, model: int) -> list[Callable[[], None]]:
        """The model was deleted: wake who waits for it, and forget what was served."""
        due = [waiter for key, waiters in self._waiters.items() if key[0] == model for waiter in waiters]
        for waiter in due:
            self.forget(waiter)
        self._served = {key: pulls for key, pulls in self._served.items() if key[0] != model}
        return [waiter.wake for waiter in due]

    def all(self) -> list[Callable[[], None]]:
        """Everything was replaced: wake everybody."""
        due = [waiter.wake for waiters in self._waiters.values() for waiter in waiters]
        self._waiters.clear()
        self.waiting = 0
        return due


def unknown_model(group: int, model: int, generation: int, *, field: str = "model") -> Refusal:
    """`group` 0: the one that was asked. `field`: where the caller named it."""
    return Refusal(
        Reason.NOT_FOUND,
        f"model {model} generation {generation} is not in {f'group {group}' if group else 'this group'}",
        field=field,
        received=f"{model} generation {generation}",
        hint="describe the model by its name: it was deleted, or loaded from a checkpoint",
    )


def stale_epoch(current: int, received: int | str) -> Refusal:
    return Refusal(
        Reason.STALE_EPOCH,
        f"placement_epoch: expected {current}, received {received}",
        field="placement_epoch",
        expected=str(current),
        received=str(received),
        hint="describe the model again",
        epoch=current,
    )


def not_open(model: int) -> Refusal:
    return Refusal(Reason.NOT_OPEN, f"model {model} has no initial values yet", field="model", retry_after_ms=100)


def _pinned(shard: Shard, index: int, want: BlockRead) -> Value | None:
    """What a pin keeps of that version; None where there is none (yet). Raises `Refusal` for a part it cannot have."""
    kept = shard.kept[index]
    if want.part > shard.slots:
        raise invalid("part", f"0 to {shard.slots} with this optimizer", want.part)
    if kept is None or kept.version != want.version:
        return None
    if not want.part:
        return Value(kept.version, Forms(kept.weights, kept.crc), kept.scalars)
    array = kept.slots[want.part - 1]
    return Value(kept.version, Forms(array, crc32c(array.data.cast("B"))), kept.scalars)


def _not_pinned(want: BlockRead, now: int) -> Refusal:
    return Refusal(
        Reason.GONE,
        f"block {want.block}: the optimizer's state is kept of a pinned version only, and {want.version} is none here",
        field="part",
        received=str(want.part),
        version=now,
    )
