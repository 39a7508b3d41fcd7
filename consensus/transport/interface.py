"""What a transport between nodes offers.

Owns the envelope: which group a message belongs to. Invariants: `send` never blocks and never raises for a peer that
is away; per channel and peer, envelopes arrive in order or not at all. Must not know: what messages mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol, TypeAlias

from consensus.core.interface import AnyMessage, GroupId, Message, NodeId, Payload, ReplicaId, SnapshotMeta

NOTE_BYTES_MAX = 4096
"""An envelope's note, or a report, is at most this long; a longer one is refused by the sender."""
ROWS_MAX = 4096
"""Rows of each kind in a heartbeat between nodes, and in its answer, are at most so many."""


class Channel(IntEnum):
    """Control carries votes, heartbeats and answers; bulk carries entries and snapshot chunks (RULES C3)."""

    CONTROL = 1
    BULK = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotChunk(Message):
    """A piece of a snapshot on its way to a follower; `crc` is the CRC32C of `data`."""

    meta: SnapshotMeta
    offset: int
    data: Payload
    crc: int
    last: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotAnswer(Message):
    """`next_offset`: everything below is held. `refused`: start over, or give up."""

    snapshot_id: str
    next_offset: int
    refused: bool = False
    installed: bool = False
    index: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRequest(Message):
    """A replica whose state is not to be trusted asks its leader for a snapshot of at least `index`, although its log
    is whole (RULES D1)."""

    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report(Message):
    """What one replica's state machine tells another's (digests, verdicts); opaque here. Wakes nobody, promises
    nothing, may be lost."""

    content: bytes


@dataclass(frozen=True, slots=True)
class AsleepRow:
    """A group that sleeps (RULES C5): who leads it on the sending node, its replica on the receiving one, and up to
    where both hold and have committed everything."""

    group: GroupId
    leader: ReplicaId
    replica: ReplicaId
    term: int
    commit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeHeartbeat(Message):
    """One for a pair of nodes and an interval (RULES C5). Of no group: sender, receiver, term and the envelope's group
    are 0. `rows` hold the heartbeats of groups that are awake; `asleep` and `asleep_hash` stand for those that sleep,
    which are `listed` when the other node said that its hash differs."""

    sender: ReplicaId = 0
    to: ReplicaId = 0
    term: int = 0
    rows: tuple[Envelope, ...] = ()
    asleep: int = 0
    asleep_hash: int = 0
    listed: bool = False
    asleep_rows: tuple[AsleepRow, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeHeartbeatAnswer(Message):
    """`rows` hold the answers of groups. `differs`: the hash does; `differing`: groups whose listed row does. Neither
    counts as contact of a group."""

    sender: ReplicaId = 0
    to: ReplicaId = 0
    term: int = 0
    rows: tuple[Envelope, ...] = ()
    differs: bool = False
    differing: tuple[GroupId, ...] = ()


TransportMessage: TypeAlias = (
    AnyMessage | SnapshotChunk | SnapshotAnswer | SnapshotRequest | Report | NodeHeartbeat | NodeHeartbeatAnswer
)


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message of one group. `note` is an opaque annotation by the sender's state machine (digests)."""

    group: GroupId
    message: TransportMessage
    note: bytes = b""


def unpacked(envelopes: Iterable[Envelope]) -> Iterator[Envelope]:
    """The messages of groups, those in the rows of a pair of nodes too."""
    for envelope in envelopes:
        if isinstance(envelope.message, NodeHeartbeat | NodeHeartbeatAnswer):
            yield from envelope.message.rows
        else:
            yield envelope


class Receiver(Protocol):
    """What the runtime gives a transport."""

    def received(self, node: NodeId, envelopes: Sequence[Envelope]) -> None: ...

    def connection(self, node: NodeId, *, closed: bool) -> None:
        """The control connection to that node closed, or stands (again)."""


class Transport(Protocol):
    def bind(self, receiver: Receiver) -> None: ...

    def send(self, node: NodeId, channel: Channel, envelopes: Sequence[Envelope]) -> None: ...
