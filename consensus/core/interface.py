"""What every consensus protocol of ours shares with its host: the values that cross the border.

Owns the vocabulary (entries, messages, `Ready`). Invariants: every value here is immutable; payloads are opaque
buffers that are passed on by reference and never copied. Must not know: tensors, disks, sockets, clocks, threads.

The contract between core and host (DESIGN section 5):

* the host feeds inputs: `step(message)`, `tick(elapsed_ms)`, `propose(payload, crc)`, `connection(replica, closed)`;
* later inputs beside these: `propose_membership(change)`, `read(token)`, `transfer(to)`, `storage(stalled)`, `wake()`;
* after any input it drains `ready()` while `has_ready()`; each `Ready` says what to persist, what to send now, what
  to apply, which reads may be answered;
* a `Ready` that has something to persist carries a `persist_number` > 0; once hard state and entries of that batch are
  durable the host calls `persisted(number)`. Batches are made durable in the order in which they were issued: hard
  state and entries are one ordered stream (HAZARDS 7). Answers which speak of unsynced things are held back by the
  core itself, and come out in a later `Ready.messages`;
* committed entries are only handed out once they are durable on this replica (RULES S3); the host applies them in order
  and reports `applied(index)`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol, TypeAlias

GroupId: TypeAlias = int
"""A consensus group; 0 is the catalogue."""
ReplicaId: TypeAlias = int
"""A member of one group, never reused; 0 means nobody. Bootstrap replicas carry their node's id."""
NodeId: TypeAlias = int
"""A server process, 1..2**16-1."""
Payload: TypeAlias = bytes | memoryview


class EntryKind(IntEnum):
    NORMAL = 1
    NOOP = 2
    CONFIGURATION = 3


@dataclass(frozen=True, slots=True)
class Entry:
    """One log entry. `crc` is the CRC32C of `payload`, made when the command was encoded; it travels with the entry
    through network, WAL and apply and is checked at each (RULES W1). `stored_bytes` > 0: the payload, of that length,
    was left to the log on disk, and `payload` is empty; whoever needs it has the host read it."""

    term: int
    index: int
    kind: EntryKind
    payload: Payload
    crc: int
    stored_bytes: int = 0

    def left_out(self) -> Entry:
        """The same, without the payload of a command, and with nothing that refers to the buffer it came in, which
        holds other payloads: a view does, be it of nothing."""
        if self.kind is not EntryKind.NORMAL or not len(self.payload):
            if isinstance(self.payload, bytes):
                return self
            return Entry(self.term, self.index, self.kind, bytes(self.payload), self.crc, self.stored_bytes)
        return Entry(self.term, self.index, self.kind, b"", self.crc, memoryview(self.payload).nbytes)


@dataclass(frozen=True, slots=True)
class HardState:
    """What must be durable before a replica speaks of it. `commit` is a hint: it may lag behind."""

    term: int = 0
    vote: ReplicaId = 0
    commit: int = 0


@dataclass(frozen=True, slots=True)
class Home:
    """Where a member lives. `uuid` is that of the node's data folder, 16 bytes (RULES I2); empty, like `address`
    (host:port), for members of the bootstrap, whose homes the member list and the introduction tell."""

    replica: ReplicaId
    node: NodeId
    uuid: bytes = b""
    address: str = ""


@dataclass(frozen=True, slots=True)
class Configuration:
    """Members of a group. The order of `voters` is their place: preferred leader first (RULES C2, C6).

    While `outgoing` is not empty the configuration is joint: it holds the voters of the one before, and every decision
    (elections, commits, reads, check-quorum) needs a majority of `voters` and one of `outgoing` (Raft section 6,
    dissertation section 4.3). Learners receive entries and count for nothing; no learner is a voter, incoming or
    outgoing. `homes` may lack members that the host knows from elsewhere. `next_replica` is above every replica id
    that was ever a member, so what is below it and no member was removed and never comes back (RULES I1); 0 stands
    for one above the highest member. Its encoding: consensus/core/configuration.py."""

    voters: tuple[ReplicaId, ...]
    learners: tuple[ReplicaId, ...] = ()
    outgoing: tuple[ReplicaId, ...] = ()
    homes: tuple[Home, ...] = ()
    next_replica: ReplicaId = 0


@dataclass(frozen=True, slots=True)
class MembershipChange:
    """What the group's members should become; everything at once, so that it can be asked for again without harm.
    A change of `voters` passes through a joint configuration, which the leader leaves by itself. A new voter must be
    a learner that caught up (promotion), or the leader refuses. `homes` are those of new members."""

    voters: tuple[ReplicaId, ...]
    learners: tuple[ReplicaId, ...] = ()
    homes: tuple[Home, ...] = ()


@dataclass(frozen=True, slots=True)
class SnapshotMeta:
    """A snapshot holds everything up to and including `index`. `snapshot_id` names its file; `bytes` is its size."""

    index: int
    term: int
    configuration: Configuration
    snapshot_id: str
    size_bytes: int = 0


# --- messages between replicas of one group -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """`incarnation` is the sender's durable start counter (RULES C4)."""

    sender: ReplicaId
    to: ReplicaId
    term: int
    incarnation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VoteRequest(Message):
    """`pre` marks a pre-vote: then `term` is the term the candidate *would* campaign in. `transfer`: the leader itself
    told the candidate to campaign, so nobody protects that leader (dissertation section 3.10)."""

    pre: bool
    last_index: int
    last_term: int
    transfer: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VoteResponse(Message):
    """A refused pre-vote carries the refuser's own term, which may be higher (HAZARDS 11)."""

    pre: bool
    granted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendRequest(Message):
    """Entries follow (previous_index, previous_term). Without entries it is a probe or a commit announcement."""

    previous_index: int
    previous_term: int
    commit: int
    entries: tuple[Entry, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendResponse(Message):
    """Success: `match_index` is durable on the sender and equal to the leader's log (flushed cursor, HAZARDS 4).
    Rejection: (`conflict_index`, `conflict_term`) tell where to try next (Raft section 5.3, fast back-off)."""

    rejected: bool
    match_index: int
    conflict_index: int = 0
    conflict_term: int = 0
    last_index: int = 0
    forgetful: bool = False
    """The sender may have forgotten what it acknowledged: it counts for nothing (RULES W7)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat(Message):
    """Never carries entries and never rides behind them. `commit` is at most the receiver's match index.
    `round` numbers the leader's heartbeat rounds within its term; with the term it is the token of reads that wait
    for it (RULES R2, HAZARDS 13). `quiesce`: every voter holds and has committed the last index, which is `commit`;
    the leader sends no more until something happens, and its followers start no election meanwhile (RULES C5)."""

    commit: int
    round: int
    quiesce: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatResponse(Message):
    round: int
    match_index: int
    """Flushed and known equal to this leader's log in this term; 0 when unknown."""
    forgetful: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignNow(Message):
    """The leader hands over (dissertation section 3.10). The receiver campaigns at once, without a pre-vote, if it is
    a voter and has flushed `last_index`, the leader's last; otherwise it ignores this (HAZARDS 21)."""

    last_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadRequest(Message):
    """A follower or learner asks its leader for a read index. `token` is the sender's own number, echoed; what
    confirms leadership is the leader's own (term, round), never this (HAZARDS 13)."""

    token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadResponse(Message):
    """`index`: state applied up to it may answer the read. `age_ms`: how long before the answer the heartbeat round
    was sent that confirmed leadership (RULES R3). `refused`: ask again, elsewhere or later."""

    token: int
    index: int = 0
    age_ms: int = 0
    refused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed(Message):
    """To a replica that is no member any more: it stops (RULES I1). Sent only on the ground of a committed
    configuration, which `index` names."""

    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RejoinRequest(Message):
    """A forgetful replica asks its leader how far it must hold the log to count again (RULES W7). `incarnation` tells
    which of its lives asks; `term` is its durable term."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RejoinResponse(Message):
    """`last_index`: the leader's last when it answered. `for_incarnation`: the life of the receiver that asked."""

    last_index: int
    for_incarnation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotOffer(Message):
    """Handed to the receiving core by its host when a whole snapshot of the leader (`sender`, `term`) arrived and was
    verified. The core answers by a `Ready.install` or ignores it."""

    meta: SnapshotMeta


AnyMessage: TypeAlias = (
    VoteRequest
    | VoteResponse
    | AppendRequest
    | AppendResponse
    | Heartbeat
    | HeartbeatResponse
    | SnapshotOffer
    | CampaignNow
    | ReadRequest
    | ReadResponse
    | Removed
    | RejoinRequest
    | RejoinResponse
)


# --- what the core asks of its host ---------------------------------------------------------------------------------


class Role(IntEnum):
    FOLLOWER = 1
    PRE_CANDIDATE = 2
    CANDIDATE = 3
    LEADER = 4


@dataclass(frozen=True, slots=True)
class ReadResult:
    """What became of `Core.read(token)`: state applied up to `index` may answer it. Such a state is at most as old as
    the time since the read was asked for, plus `age_ms` (RULES R3). `refused`: no index can be had now (no leader, a
    transfer under way, leadership lost); nothing is known, ask again."""

    token: int
    index: int = 0
    age_ms: int = 0
    refused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """One batch of work for the host.

    `persist_number` > 0: write `install` (a snapshot record), then `hard_state`, then `entries`, to the one ordered
    stream, and call `persisted(persist_number)` when they are durable. `entries` supersede everything at or above
    the first one's index.
    `messages`: may be sent at once (before, or while, the batch is being written).
    `committed`: committed and durable here, in order, to be applied.
    Entries of `messages` and `committed` may have been left to the log (`Entry.stored_bytes`): the host reads their
    payload from what it made durable before it sends or applies them. One that is not there any more was superseded
    meanwhile: then the message is dropped, as if the network had lost it, and a snapshot is on its way into the state
    machine. `entries` are always whole.
    `send_snapshot`: peers whose next entry is compacted away; the host streams its newest snapshot to them and reports
    `snapshot_sent(replica, meta, ok)`.
    `install`: a snapshot that the host holds as a verified file: make its record durable, load it into the state
    machine, then report `persisted(number)` and `installed(meta)`.
    `clear_forgetful`: the mark of RULES W7 ends with this batch (it is part of the same ordered stream).
    `reads`: answers, each token once.
    """

    persist_number: int = 0
    hard_state: HardState | None = None
    entries: tuple[Entry, ...] = ()
    install: SnapshotMeta | None = None
    messages: tuple[AnyMessage, ...] = ()
    committed: tuple[Entry, ...] = ()
    send_snapshot: tuple[ReplicaId, ...] = ()
    clear_forgetful: bool = False
    reads: tuple[ReadResult, ...] = ()


class Randomness(Protocol):
    """The injected source of randomness, `random.Random` by shape."""

    def randrange(self, start: int, stop: int) -> int: ...


@dataclass(frozen=True, slots=True)
class Status:
    """A picture of a replica for people and checks."""

    role: Role
    term: int
    leader: ReplicaId
    vote: ReplicaId
    first_index: int
    last_index: int
    last_term: int
    flushed_index: int
    commit_index: int
    applied_index: int
    snapshot_index: int
    ready_to_serve: bool
    """Leader whose no-op of this term is applied (RULES S2)."""
    match: dict[ReplicaId, int] = field(default_factory=dict)
    configuration: Configuration | None = None
    """The one in force: the last in the log, committed or not (HAZARDS 19)."""
    configuration_index: int = 0
    """Where it stands in the log; 0 for the one the replica began with, or the snapshot's index."""
    transferee: ReplicaId = 0
    """Leadership is being handed to it: proposals and reads are refused meanwhile."""
    quiesced: bool = False
    forgetful: bool = False
    """It neither votes, campaigns, serves nor counts (RULES W7)."""
    storage_stalled: bool = False
    removed: bool = False
    """It was told that it is no member any more, and does nothing."""


class Core(Protocol):
    """One replica of one group as a pure state machine. `consensus.core.raft.RaftCore` is one."""

    def step(self, message: AnyMessage) -> None:
        """Take a message from a peer. Malformed or foreign ones are counted and dropped, never raise."""

    def tick(self, elapsed_ms: int, *, beat: bool | None = None) -> None:
        """Time passed. After a stall the host caps `elapsed_ms` at one election timeout (RULES C1). `beat`: whether a
        leader's heartbeat is due, for a host that lets those of all its groups fall together; None: the core judges by
        the time."""

    def propose(self, payload: Payload, crc: int, kind: EntryKind = EntryKind.NORMAL) -> tuple[int, int]:
        """Append a command and return its (term, index). Raises `NotLeader` (with the known leader) or `Busy`
        (uncommitted bytes above the bound)."""

    def connection(self, replica: ReplicaId, *, closed: bool) -> None:
        """The control connection to that replica closed or stands again: a hint, never a proof (RULES C2)."""

    def propose_membership(self, change: MembershipChange) -> tuple[int, int]:
        """Append a configuration and return its (term, index). Raises `NotLeader`, or `MembershipRefused` with the
        reason: a change under way, no entry of the own term committed yet, a voter that has not caught up, an id that
        was used before, no voters. Asking for what is already so is no error: (term, index) of the one in force."""

    def read(self, token: int) -> None:
        """Ask for a read index; the answer comes in `Ready.reads`, exactly once, at the leader and elsewhere;
        refused when leadership ends or changes, and at the latest after ten election timeouts. Never raises."""

    def transfer(self, to: ReplicaId) -> None:
        """Hand leadership to a voter. Raises `NotLeader` or `TransferRefused`. Done when `status().leader` changes;
        given up within one election timeout, which `status().transferee` shows."""

    def transfer_problem(self, to: ReplicaId) -> str:
        """Why `transfer(to)` would be refused now, in words; empty when it would not."""

    def storage(self, *, stalled: bool) -> None:
        """The host's disk makes no progress, or does again. A stalled leader hands over or steps down, a stalled
        replica does not campaign (HAZARDS 16)."""

    def wake(self) -> None:
        """Something happened that a quiesced group must not sleep through (RULES C5)."""

    def persisted(self, number: int) -> None: ...

    def applied(self, index: int) -> None: ...

    def installed(self, meta: SnapshotMeta) -> None: ...

    def snapshot_sent(self, replica: ReplicaId, meta: SnapshotMeta | None, *, ok: bool) -> None: ...

    def compact(self, meta: SnapshotMeta, *, keep_from: int) -> None:
        """The host holds a durable snapshot `meta`; entries below `keep_from` (<= meta.index + 1) are released."""

    def has_ready(self) -> bool: ...

    def ready(self) -> Ready: ...

    def status(self) -> Status: ...

    def outlook(self) -> tuple[object, ...]:
        """Equal as long as nothing changed that an owner is told of: role, term, leader, readiness, the configuration
        in force and whether it is committed, sleep, removal, a hand-over. Hosts ask after every input, for which a
        whole `status` is too dear."""
