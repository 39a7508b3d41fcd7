"""The network between nodes: delay, loss, duplication, reordering, cut and clogged links.

Owns what is under way. Invariants: what arrives was sent; over `ordered` links each channel is a stream that loses
nothing but with its connection (what meets a cut link waits for it to heal); otherwise each message travels alone, may
be lost, doubled, and arrive in another life of its receiver. Must not know: what messages mean.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Protocol, TypeAlias

from consensus.core.interface import NodeId
from consensus.simulation.connections import Connections, Pair
from consensus.simulation.profile import Profile, between
from consensus.simulation.schedule import MS, Scheduler
from consensus.simulation.trace import Trace
from consensus.transport.interface import Channel, Envelope, NodeHeartbeat, NodeHeartbeatAnswer, Receiver, SnapshotChunk

Link: TypeAlias = tuple[NodeId, NodeId]
Wire: TypeAlias = Callable[[NodeId, Sequence[Envelope]], Sequence[Envelope]]
"""What encoding and parsing makes of the envelopes of a node."""


class Host(Protocol):
    """A simulated process, as the network sees it."""

    node: NodeId

    @property
    def running(self) -> bool: ...

    def later(self, delay_us: int, what: str, action: Callable[[], None]) -> None: ...


class Network:
    def __init__(
        self, scheduler: Scheduler, source: random.Random, profile: Profile, trace: Trace, wire: Wire | None
    ) -> None:
        self.profile = profile
        self._rough: frozenset[NodeId] = frozenset()
        self._rough_profile = profile
        self.connections = Connections(scheduler, source, self, self._broken)
        self._scheduler = scheduler
        self._random = source
        self._trace = trace
        self._wire = wire
        self.piece_arrives: Callable[[NodeId], None] = lambda _: None
        """Told of each piece of a snapshot that reaches a node."""
        self._hosts: dict[NodeId, Host] = {}
        self._receivers: dict[NodeId, Receiver] = {}
        self._cuts: Counter[Link] = Counter()
        self._lag_us: Counter[Link] = Counter()
        self._last_arrival_us: dict[tuple[Link, Channel], int] = {}
        self._stuck: dict[Link, list[tuple[int, Channel, Sequence[Envelope]]]] = {}
        """What arrived at a cut ordered link: (epoch, channel, envelopes)."""

    # --- nodes ------------------------------------------------------------------------------------------------------

    def join(self, host: Host) -> None:
        self._hosts[host.node] = host

    def started(self, node: NodeId, receiver: Receiver) -> None:
        self._receivers[node] = receiver
        self.connections.started(node, self._peers(node))

    def gone(self, node: NodeId, *, silent: bool) -> None:
        self._receivers.pop(node, None)
        self.connections.gone(node, self._peers(node), silent=silent)

    def _peers(self, node: NodeId) -> list[NodeId]:
        return [peer for peer in self._hosts if peer != node]

    # --- links ------------------------------------------------------------------------------------------------------

    def cut(self, links: Sequence[Link]) -> None:
        for link in links:
            self._cuts[link] += 1
            self.connections.cut(*link)

    def heal(self, links: Sequence[Link]) -> None:
        for link in links:
            self._cuts[link] -= 1
            if self.passes(*link):
                self._release(link)

    def heal_among(self, nodes: Collection[NodeId]) -> None:
        """Links between these nodes are fine from now on; those of others stay as they are."""
        links = {link for link in [*self._cuts, *self._lag_us] if link[0] in nodes and link[1] in nodes}
        self.heal([link for link in sorted(links) for _ in range(self._cuts[link])])
        for link in links:
            self._lag_us.pop(link, None)
        self._rough = frozenset(self._hosts) - frozenset(nodes)
        self._rough_profile, self.profile = self._rough_profile, self._rough_profile.calm()

    def profile_of(self, *nodes: NodeId) -> Profile:
        """The surroundings of a node, or of a link."""
        return self._rough_profile if self._rough and not self._rough.isdisjoint(nodes) else self.profile

    def clog(self, links: Sequence[Link], lag_ms: int) -> None:
        """Negative takes the same lag away again."""
        for link in links:
            self._lag_us[link] += lag_ms * MS

    def passes(self, source: NodeId, target: NodeId) -> bool:
        return self._cuts[(source, target)] <= 0

    def alive(self, node: NodeId) -> bool:
        return self._hosts[node].running

    def notice(self, node: NodeId, peer: NodeId, *, closed: bool) -> None:
        def tell() -> None:
            receiver = self._receivers.get(node)
            if receiver is not None:
                receiver.connection(peer, closed=closed)

        self._hosts[node].later(0, f"connection to {peer} {'closed' if closed else 'stands'}", tell)

    # --- messages ---------------------------------------------------------------------------------------------------

    def send(self, source: NodeId, target: NodeId, channel: Channel, envelopes: Sequence[Envelope]) -> None:
        if self._wire is not None:
            envelopes = self._wire(source, envelopes)
        if self.profile.ordered:
            self._stream(source, target, channel, envelopes)
            return
        profile = self.profile_of(source, target)
        for envelope in envelopes:
            copies = 1 + (self._random.randrange(1000) < profile.duplicate_permille)
            for _ in range(copies):
                if self._random.randrange(1000) < profile.loss_permille:
                    self._trace.add("network", f"lost {source}>{target} {describe(envelope)}")
                elif self.passes(source, target):
                    self._arrive(self._delay(source, target), source, target, 0, channel, (envelope,))

    def _stream(self, source: NodeId, target: NodeId, channel: Channel, envelopes: Sequence[Envelope]) -> None:
        epoch = self.connections.epoch(source, target)
        if not epoch:
            return
        at = self._scheduler.now_us + self._delay(source, target)
        key = ((source, target), channel)
        at = self._last_arrival_us[key] = max(at, self._last_arrival_us.get(key, 0))
        self._arrive(at - self._scheduler.now_us, source, target, epoch, channel, envelopes)

    def _delay(self, source: NodeId, target: NodeId) -> int:
        profile = self.profile_of(source, target)
        delay = between(self._random, profile.delay_us) + self._lag_us[(source, target)]
        if self._random.randrange(1000) < profile.late_permille:
            delay += between(self._random, profile.late_us)
        return delay

    def _arrive(
        self, delay_us: int, source: NodeId, target: NodeId, epoch: int, channel: Channel, envelopes: Sequence[Envelope]
    ) -> None:
        def arrive() -> None:
            if epoch and self.connections.epoch(source, target) != epoch:
                return
            if self.passes(source, target):
                self._deliver(source, target, envelopes)
            elif epoch:
                self._stuck.setdefault((source, target), []).append((epoch, channel, envelopes))

        self._scheduler.after(delay_us, arrive)

    def _deliver(self, source: NodeId, target: NodeId, envelopes: Sequence[Envelope]) -> None:
        receiver = self._receivers.get(target)
        if receiver is not None:
            what = "; ".join(map(describe, envelopes))
            self._hosts[target].later(0, f"from {source}: {what}", lambda: receiver.received(source, envelopes))
            if any(isinstance(envelope.message, SnapshotChunk) for envelope in envelopes):
                self.piece_arrives(target)

    def _release(self, link: Link) -> None:
        """A healed stream delivers what waited, in order, if the connection lived through it."""
        for epoch, _, envelopes in self._stuck.pop(link, []):
            if self.connections.epoch(*link) == epoch:
                self._deliver(*link, envelopes)

    def _broken(self, pair: Pair) -> None:
        for link in (pair, pair[::-1]):
            self._stuck.pop(link, None)
            for channel in Channel:
                self._last_arrival_us.pop((link, channel), None)


class SimulatedTransport:
    """`consensus.transport.interface.Transport` of one life of a process."""

    def __init__(self, network: Network, node: NodeId, watch: Callable[[Sequence[Envelope]], None]) -> None:
        self._network = network
        self._node = node
        self._watch = watch
        self.receiver: Receiver | None = None

    def bind(self, receiver: Receiver) -> None:
        self.receiver = receiver

    def send(self, node: NodeId, channel: Channel, envelopes: Sequence[Envelope]) -> None:
        self._watch(envelopes)
        self._network.send(self._node, node, channel, tuple(envelopes))


def describe(envelope: Envelope) -> str:
    """One message in a few words: what differs between messages of its kind."""
    message = envelope.message
    if isinstance(message, NodeHeartbeat | NodeHeartbeatAnswer):
        return _describe_pair(message)
    words = [f"g{envelope.group} {type(message).__name__} t{message.term}"]
    for name in ("pre", "granted", "rejected", "last", "refused", "installed"):
        if getattr(message, name, False):
            words.append(name)
    for name in _SHOWN:
        value = getattr(message, name, None)
        if value is not None:
            words.append(f"{name}={value}")
    entries = getattr(message, "entries", ())
    if entries:
        words.append(f"entries={entries[0].index}..{entries[-1].index} of t{entries[0].term}..{entries[-1].term}")
    return " ".join(words)


def _describe_pair(message: NodeHeartbeat | NodeHeartbeatAnswer) -> str:
    words = [type(message).__name__]
    if isinstance(message, NodeHeartbeat):
        words += [f"asleep={message.asleep}"] if message.asleep else []
        words += ["listed"] if message.listed else []
    else:
        words += ["differs"] if message.differs else []
        words += [f"differing={message.differing}"] if message.differing else []
    return " ".join([*words, *(f"[{describe(row)}]" for row in message.rows)])


_SHOWN = (
    "last_index",
    "last_term",
    "previous_index",
    "previous_term",
    "commit",
    "match_index",
    "conflict_index",
    "round",
    "offset",
    "next_offset",
)
