"""Drives Raft cores in memory: a host that holds what is durable, and a network of queues.

Nothing happens by itself: tests say what is persisted, delivered, lost, and how much time passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from consensus.core.configuration import decode_configuration, encode_configuration
from consensus.core.interface import (
    AnyMessage,
    AppendRequest,
    AppendResponse,
    Configuration,
    Entry,
    EntryKind,
    HardState,
    Heartbeat,
    HeartbeatResponse,
    Message,
    Randomness,
    ReadResult,
    Ready,
    Role,
    SnapshotMeta,
    SnapshotOffer,
    VoteRequest,
    VoteResponse,
)
from consensus.core.raft import RaftConfig, RaftCore

M = TypeVar("M", bound=Message)
THREE = Configuration((1, 2, 3))


class Lowest:
    """Randomness that always draws the least."""

    def randrange(self, start: int, stop: int) -> int:
        return start


def entry(term: int, index: int, payload: bytes = b"", *, kind: EntryKind = EntryKind.NORMAL) -> Entry:
    return Entry(term, index, kind, payload, sum(payload))


def configuration_entry(term: int, index: int, configuration: Configuration) -> Entry:
    return entry(term, index, encode_configuration(configuration), kind=EntryKind.CONFIGURATION)


def log_of(*terms: int) -> tuple[Entry, ...]:
    """A log from index 1 whose entries have these terms."""
    return tuple(entry(term, index + 1, b"%d.%d" % (term, index + 1)) for index, term in enumerate(terms))


def meta(index: int, term: int, configuration: Configuration = THREE) -> SnapshotMeta:
    return SnapshotMeta(index, term, configuration, f"snapshot-{index}")


@dataclass
class Disk:
    """What survives a crash."""

    hard_state: HardState = field(default_factory=HardState)
    entries: list[Entry] = field(default_factory=list)
    snapshot: SnapshotMeta | None = None
    incarnation: int = 0
    forgetful: bool = False
    lost: set[tuple[int, int]] = field(default_factory=set)
    """(index, term) of what was durable once, before it was damaged."""
    lost_snapshot: int = 0

    def held_once(self, one: Entry) -> bool:
        """It may have been acknowledged while it was there."""
        return self.holds(one) or (one.index, one.term) in self.lost or one.index <= self.lost_snapshot

    def damage(self, *, left: int = 0) -> None:
        """Durable entries are gone but for the first `left`, the snapshot with them; the mark of RULES W7 is made."""
        self.lost = {*self.lost, *((old.index, old.term) for old in self.entries)}
        self.lost_snapshot = max(self.lost_snapshot, self.snapshot.index if self.snapshot else 0)
        self.snapshot = None
        self.entries = [old for old in self.entries if old.index <= left]
        if self.entries and self.entries[0].index != 1:
            self.entries = []
        self.forgetful = True

    def write(self, ready: Ready) -> None:
        if ready.install is not None:
            self.take_snapshot(ready.install)
            self.entries = []
        if ready.hard_state is not None:
            self.hard_state = ready.hard_state
        if ready.entries:
            if any(one.stored_bytes for one in ready.entries):
                raise AssertionError(f"asked to write what was left to the log: {ready.entries}")
            self.entries = [old for old in self.entries if old.index < ready.entries[0].index]
            self.entries.extend(ready.entries)
        if ready.clear_forgetful:
            self.forgetful = False

    def load(self, one: Entry) -> Entry | None:
        """With its payload, if it is there."""
        if not one.stored_bytes:
            return one
        return next((found for found in self.entries if (found.index, found.term) == (one.index, one.term)), None)

    def whole(self, message: AnyMessage) -> AnyMessage | None:
        """With the payload that was left to the log; None when it is not there any more."""
        if not isinstance(message, AppendRequest):
            return message
        entries = [self.load(one) for one in message.entries]
        found = tuple(one for one in entries if one is not None)
        return replace(message, entries=found) if len(found) == len(entries) else None

    def holds(self, one: Entry) -> bool:
        if self.snapshot is not None and self.snapshot.index >= one.index:
            return True
        return any(found.index == one.index and found.term == one.term for found in self.entries)

    def take_snapshot(self, snapshot: SnapshotMeta, *, keep_from: int | None = None) -> None:
        self.snapshot = snapshot
        least = snapshot.index + 1 if keep_from is None else keep_from
        self.entries = [old for old in self.entries if old.index >= least]


class Host:
    """One core with its disk. Batches wait in `writing` until `persist`."""

    def __init__(
        self,
        replica: int = 1,
        configuration: Configuration = THREE,
        *,
        disk: Disk | None = None,
        config: RaftConfig | None = None,
        random: Randomness | None = None,
    ) -> None:
        self.replica = replica
        self.configuration = configuration
        self.config = config or RaftConfig()
        self.random = random or Lowest()
        self.disk = disk or Disk()
        self.start()

    def start(self) -> None:
        """A new life on what the disk holds."""
        self.disk.incarnation += 1
        self.writing: list[Ready] = []
        self.sent: list[AnyMessage] = []
        self.applied: list[Entry] = []
        self.snapshots_asked: list[int] = []
        self.reads: list[ReadResult] = []
        self.core = RaftCore(
            group=1,
            replica=self.replica,
            configuration=self.configuration,
            hard_state=self.disk.hard_state,
            entries=tuple(self.disk.entries),
            snapshot=self.disk.snapshot,
            incarnation=self.disk.incarnation,
            config=self.config,
            random=self.random,
            forgetful=self.disk.forgetful,
        )

    # --- driving ----------------------------------------------------------------------------------------------------

    def drain(self) -> list[AnyMessage]:
        """Take all that is ready; returns the messages that left."""
        left: list[AnyMessage] = []
        while self.core.has_ready():
            ready = self.core.ready()
            left.extend(whole for message in ready.messages if (whole := self.disk.whole(message)) is not None)
            if ready.persist_number:
                self.writing.append(ready)
            for done in ready.committed:
                self.applied.append(self.disk.load(done) or done)
                self.core.applied(done.index)
            self.snapshots_asked.extend(ready.send_snapshot)
            self.reads.extend(ready.reads)
        self.sent.extend(left)
        return left

    def entry(self, index: int) -> Entry | None:
        """From the log, in memory or not."""
        one = self.core.entry(index)
        return None if one is None else self.disk.load(one)

    @property
    def applied_configuration(self) -> Configuration:
        """The one in force up to where it applied, which a snapshot there carries."""
        for one in reversed(self.applied):
            if one.kind is EntryKind.CONFIGURATION:
                return decode_configuration(one.payload)
        return self.disk.snapshot.configuration if self.disk.snapshot else self.configuration

    def persist_one(self) -> list[AnyMessage]:
        """The oldest batch becomes durable; returns the messages that left then."""
        ready = self.writing.pop(0)
        self.disk.write(ready)
        self.core.persisted(ready.persist_number)
        if ready.install is not None:
            self.applied.clear()
            self.core.installed(ready.install)
        return self.drain()

    def persist(self) -> list[AnyMessage]:
        """Everything becomes durable, also what that leads to."""
        left = self.drain()
        while self.writing:
            left += self.persist_one()
        return left

    def step(self, *messages: AnyMessage) -> list[AnyMessage]:
        for message in messages:
            self.core.step(message)
        return self.drain()

    def tick(self, elapsed_ms: int, *, step_ms: int = 10) -> list[AnyMessage]:
        left = []
        for _ in range(elapsed_ms // step_ms):
            self.core.tick(step_ms)
            left += self.drain()
        return left

    def propose(self, *payloads: bytes) -> list[AnyMessage]:
        for payload in payloads:
            self.core.propose(payload, sum(payload))
        return self.drain()

    # --- becoming something by hand ---------------------------------------------------------------------------------

    def lead(self) -> Host:
        """Win an election with the votes of everybody, in the next term; messages so far are forgotten."""
        self.core.tick(300)
        while self.core.status().role is Role.FOLLOWER:
            self.core.tick(10)
        self.persist()
        for pre in (True, False):
            for voter in (*self.core.configuration.voters, *self.core.configuration.outgoing):
                if voter != self.replica and self.core.status().role is not Role.LEADER:
                    term = self.core.status().term + pre
                    self.step(self.message(VoteResponse, sender=voter, term=term, pre=pre, granted=True))
            if self.core.status().role is not Role.LEADER:
                self.persist()
        if self.core.status().role is not Role.LEADER:
            raise AssertionError(f"did not win: {self.core.status()}")
        self.persist()
        self.sent.clear()
        return self

    def message(self, kind: type[M], *, sender: int, term: int | None = None, **fields: Any) -> M:
        """A message to this replica, of its own term and a first life unless told otherwise."""
        fields.setdefault("incarnation", 1)
        return kind(sender=sender, to=self.replica, term=self.term if term is None else term, **fields)

    def append(
        self,
        *entries: Entry,
        after: tuple[int, int] = (0, 0),
        term: int | None = None,
        commit: int = 0,
        sender: int = 1,
        incarnation: int = 1,
    ) -> list[AnyMessage]:
        """An append request of `sender`, entries after (term, index)."""
        return self.step(
            self.message(
                AppendRequest,
                sender=sender,
                term=term,
                incarnation=incarnation,
                previous_term=after[0],
                previous_index=after[1],
                commit=commit,
                entries=entries,
            )
        )

    def match(self, replica: int, index: int, *, term: int | None = None, incarnation: int = 1) -> list[AnyMessage]:
        """A peer's answer: everything up to `index` is durable there."""
        return self.step(
            self.message(
                AppendResponse,
                sender=replica,
                term=term,
                incarnation=incarnation,
                rejected=False,
                match_index=index,
                last_index=index,
            )
        )

    def heartbeat(
        self, *, sender: int = 1, term: int | None = None, commit: int = 0, number: int = 1, quiesce: bool = False
    ) -> list[AnyMessage]:
        return self.step(
            self.message(Heartbeat, sender=sender, term=term, commit=commit, round=number, quiesce=quiesce)
        )

    def answer_round(self, replica: int, number: int, *, term: int | None = None, match: int = 0) -> list[AnyMessage]:
        """A peer's answer to a heartbeat round."""
        return self.step(self.message(HeartbeatResponse, sender=replica, term=term, round=number, match_index=match))

    # --- looking ----------------------------------------------------------------------------------------------------

    @property
    def term(self) -> int:
        return self.core.status().term

    @property
    def role(self) -> Role:
        return self.core.status().role

    def terms(self) -> list[int]:
        """Terms of the log in memory, from its first index."""
        status = self.core.status()
        found = [self.core.entry(index) for index in range(status.first_index, status.last_index + 1)]
        return [one.term for one in found if one is not None]


def of(kind: type[M], messages: Iterable[AnyMessage], *, to: int | None = None) -> list[M]:
    """The messages of one kind, to one receiver."""
    return [found for found in messages if isinstance(found, kind) and to in (None, found.to)]


def only(kind: type[M], messages: Iterable[AnyMessage], *, to: int | None = None) -> M:
    found = of(kind, messages, to=to)
    if len(found) != 1:
        raise AssertionError(f"wanted one {kind.__name__}, got {found}")
    return found[0]


def follower(
    *terms: int, replica: int = 2, term: int | None = None, vote: int = 0, commit: int = 0, **rest: Any
) -> Host:
    """A replica that starts with a durable log of these terms."""
    entries = list(log_of(*terms))
    last = entries[-1].term if entries else 0
    disk = Disk(HardState(last if term is None else term, vote, commit), entries)
    return Host(replica, disk=disk, **rest)


def leader(*terms: int, replica: int = 1, commit: int = 0, **rest: Any) -> Host:
    """A replica that led a durable log of these terms and has just won the term after; its no-op is durable here."""
    return follower(*terms, replica=replica, commit=commit, **rest).lead()


class Cluster:
    """Some hosts on a network without delay. `blocked` holds directed links (sender, receiver) that lose everything."""

    def __init__(self, *hosts: Host) -> None:
        self.hosts = {host.replica: host for host in hosts}
        self.blocked: set[tuple[int, int]] = set()
        self.down: set[int] = set()
        self.transferring: list[tuple[int, int]] = []

    @classmethod
    def of_size(cls, size: int, **rest: Any) -> Cluster:
        configuration = Configuration(tuple(range(1, size + 1)))
        return cls(*(Host(replica, configuration, **rest) for replica in configuration.voters))

    def up(self) -> list[Host]:
        return [host for replica, host in self.hosts.items() if replica not in self.down]

    def settle(self, *, watch: Callable[[], None] = lambda: None) -> None:
        """Persist and deliver until nothing moves."""
        for _ in range(10_000):
            moved = False
            for host in self.up():
                host.drain()
                if host.writing:
                    host.persist_one()
                    moved = True
                queue, host.sent = host.sent, []
                for message in queue:
                    moved = True
                    self.deliver(message)
                    watch()
            if not moved:
                return
        raise AssertionError("the cluster never comes to rest")

    def deliver(self, message: AnyMessage) -> None:
        if (message.sender, message.to) not in self.blocked and message.to not in self.down:
            self.hosts[message.to].step(message)

    def run(self, elapsed_ms: int, *, watch: Callable[[], None] = lambda: None) -> None:
        for _ in range(elapsed_ms // 10):
            for host in self.up():
                host.core.tick(10)
            self.settle(watch=watch)

    def cut(self, *replicas: int) -> None:
        """Separate these from all others, both ways."""
        for inside in replicas:
            for outside in self.hosts:
                if outside not in replicas:
                    self.blocked |= {(inside, outside), (outside, inside)}

    def heal(self) -> None:
        self.blocked.clear()

    def leaders(self) -> list[Host]:
        return [host for host in self.up() if host.role is Role.LEADER]

    def leader(self) -> Host:
        """The leader of the highest term."""
        return max(self.leaders(), key=lambda host: host.term)

    def elect(self) -> Host:
        self.run(1000)
        return self.leader()


def offer(
    host: Host, snapshot: SnapshotMeta, *, sender: int = 1, term: int | None = None, incarnation: int = 1
) -> SnapshotOffer:
    return host.message(SnapshotOffer, sender=sender, term=term, incarnation=incarnation, meta=snapshot)


def resend(message: M, **changes: Any) -> M:
    return replace(message, **changes)


__all__ = [
    "THREE",
    "AppendRequest",
    "AppendResponse",
    "Cluster",
    "Disk",
    "Heartbeat",
    "HeartbeatResponse",
    "Host",
    "Lowest",
    "VoteRequest",
    "VoteResponse",
    "configuration_entry",
    "entry",
    "follower",
    "leader",
    "log_of",
    "meta",
    "of",
    "offer",
    "only",
    "resend",
]
