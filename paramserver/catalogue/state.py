"""What group 0 agrees on, as immutable values.

Owns models, placement, views, rank and initialization leases. Invariants: ids and epochs only rise and are never reused
(RULES M1, S8); a published record is never changed, so another thread may read it at any time. Must not know: weights,
protobuf, clocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

from consensus.core.interface import GroupId, NodeId
from paramserver.wire.protos import View
from paramserver.wire.spec import ModelSpec

ModelId: TypeAlias = int
SessionId: TypeAlias = int

FIRST_VIEW = 1
"""Holds all ranks, none of them taken (lease epoch 0)."""
FIRST_GENERATION = 1
FIRST_PLACEMENT_EPOCH = 1


class NodeState(IntEnum):
    """What may be placed on a node."""

    ACTIVE = 1
    NO_LEADERS = 2
    """Keeps its replicas; leads nothing where another can."""
    DRAINING = 3
    """Gets no replica, leads nothing where another can; what it holds moves away."""
    REMOVED = 4
    """Its folder never takes part again. The number may come back with another folder."""


@dataclass(frozen=True, slots=True)
class Node:
    """A member of the cluster. `node_uuid`: 16 bytes, of its data folder. `then_remove`: removed by itself when it is
    drained."""

    node: NodeId
    address: str
    node_uuid: bytes
    state: NodeState = NodeState.ACTIVE
    then_remove: bool = False


@dataclass(frozen=True, slots=True)
class Shard:
    """Blocks [first_block, first_block + blocks) of a model live in `group`."""

    group: GroupId
    first_block: int
    blocks: int


@dataclass(frozen=True, slots=True)
class Lease:
    """A rank's lease. `epoch` 0: never taken. Not `held`: anybody may take it; its last session is still named."""

    epoch: int = 0
    session: SessionId = 0
    held: bool = False


@dataclass(frozen=True, slots=True)
class InitializationLease:
    """Who may send initial values (RULES M3). `session` 0: nobody."""

    epoch: int = 0
    session: SessionId = 0


class RateStage(IntEnum):
    """How far a change of the learning rate is (RULES S11)."""

    HOLDING = 1
    """Data groups are told to apply no update of its step; the step may still be raised."""
    SETTLED = 2
    """All of them hold: the step is final, and the rate is told."""
    DONE = 3
    """All of them have it."""


@dataclass(frozen=True, slots=True)
class RateChange:
    """`learning_rate`, a float32, from `step` on. Numbers rise by one, of a model and generation."""

    number: int
    step: int
    learning_rate: float
    stage: RateStage = RateStage.HOLDING


class PinStage(IntEnum):
    """How far a pin is (RULES R4)."""

    PLACING = 1
    """Data groups are told; its step may still be raised."""
    PLACED = 2
    """All of them will keep, or keep, that version."""
    ENDED = 3


@dataclass(frozen=True, slots=True)
class Pin:
    """Version `step` of a whole model is kept for `session`. Numbers rise by one, of a model."""

    number: int
    step: int
    session: SessionId
    stage: PinStage = PinStage.PLACING


@dataclass(frozen=True, slots=True)
class Loaded:
    """Where the values of a model come from a checkpoint: its step, and its changes of the learning rate."""

    step: int
    rates: tuple[tuple[int, float], ...] = ()
    """(step, learning rate), ascending."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """A model that was deleted, and the groups that have not let go of it yet."""

    model: ModelId
    generation: int
    groups: frozenset[GroupId]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """`created`: groups known to have their shard; the model is complete when they all do (RULES M2).
    `open`: decided here; every data group is told until it has opened."""

    model: ModelId
    generation: int
    spec: ModelSpec
    shards: tuple[Shard, ...]
    placement_epoch: int
    view: View
    leases: tuple[Lease, ...]
    created: frozenset[GroupId] = frozenset()
    open: bool = False
    initialization: InitializationLease = InitializationLease()
    rates: tuple[RateChange, ...] = ()
    """The latest changes, in the order in which they were asked for; only the last may be under way."""

    pin: Pin | None = None
    """The latest."""
    loaded: Loaded | None = None
    """None: its values are initial ones."""

    @property
    def loading(self) -> bool:
        """Its values are on their way from a checkpoint: it has no name until it is open."""
        return self.loaded is not None and not self.open

    @property
    def pinned(self) -> Pin | None:
        return self.pin if self.pin is not None and self.pin.stage is not PinStage.ENDED else None

    @property
    def rate_under_way(self) -> RateChange | None:
        last = self.rates[-1] if self.rates else None
        return last if last is not None and last.stage is not RateStage.DONE else None

    def rate_number(self, number: int) -> RateChange | None:
        return next((one for one in self.rates if one.number == number), None)

    @property
    def groups(self) -> tuple[GroupId, ...]:
        return tuple(shard.group for shard in self.shards)

    @property
    def complete(self) -> bool:
        return self.created >= frozenset(self.groups)

    def shard_of(self, group: GroupId) -> Shard | None:
        return next((shard for shard in self.shards if shard.group == group), None)
