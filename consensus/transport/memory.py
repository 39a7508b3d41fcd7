"""A network in memory, for tests and for reading.

Owns what is on its way. Invariants: between two nodes and on one channel envelopes arrive in order or not at all;
nothing is delivered inside `send`: `deliver` does it. Must not know: what messages mean.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from consensus.core.interface import NodeId
from consensus.transport.interface import Channel, Envelope, Receiver

QUEUE_MAX = 100_000
"""Sends on their way; further ones are lost."""


class MemoryNetwork:
    """Whoever made it calls `deliver`."""

    def __init__(self) -> None:
        self._receivers: dict[NodeId, Receiver] = {}
        self._queue: deque[tuple[NodeId, NodeId, Channel, tuple[Envelope, ...]]] = deque()
        self._cut: set[tuple[NodeId, NodeId]] = set()
        self.held: set[tuple[NodeId, Channel]] = set()
        """Receiving ends that stopped reading: what is sent there waits, in order."""
        self._waiting: deque[tuple[NodeId, NodeId, Channel, tuple[Envelope, ...]]] = deque()
        self.delivered = 0
        self.lost = 0

    def transport(self, node: NodeId) -> MemoryTransport:
        return MemoryTransport(self, node)

    def join(self, node: NodeId, receiver: Receiver) -> None:
        """A node is there (again); the others see its connection stand."""
        self._receivers[node] = receiver

    def connect(self, node: NodeId) -> None:
        """Everybody that is reachable sees everybody's connection stand."""
        for other in list(self._receivers):
            if other != node and (node, other) not in self._cut:
                self._receivers[other].connection(node, closed=False)
                self._receivers[node].connection(other, closed=False)

    def leave(self, node: NodeId) -> None:
        """The node's process is gone: what is on its way to it is lost, and the others see its connection close."""
        self._receivers.pop(node, None)
        self._queue = deque(item for item in self._queue if item[1] != node)
        for other in list(self._receivers):
            if (node, other) not in self._cut:
                self._receivers[other].connection(node, closed=True)

    def cut(self, one: NodeId, other: NodeId) -> None:
        """Silently lose what the two send each other."""
        self._cut |= {(one, other), (other, one)}

    def heal(self) -> None:
        self._cut.clear()

    def release(self) -> None:
        """Held ends read again."""
        self.held.clear()
        waiting, self._waiting = self._waiting, deque()
        self._queue.extendleft(reversed(waiting))

    def send(self, sender: NodeId, node: NodeId, channel: Channel, envelopes: Sequence[Envelope]) -> None:
        if (sender, node) in self._cut or node not in self._receivers or len(self._queue) >= QUEUE_MAX:
            self.lost += len(envelopes)
            return
        self._queue.append((sender, node, channel, tuple(envelopes)))

    def deliver(self, sends_max: int = QUEUE_MAX) -> int:
        """Deliver what is on its way, and what that causes; returns how many sends."""
        count = 0
        while self._queue and count < sends_max:
            item = self._queue.popleft()
            sender, node, channel, envelopes = item
            if (node, channel) in self.held:
                self._waiting.append(item)
                continue
            receiver = self._receivers.get(node)
            if receiver is None or (sender, node) in self._cut:
                self.lost += len(envelopes)
                continue
            count += 1
            self.delivered += len(envelopes)
            receiver.received(sender, envelopes)
        return count


class MemoryTransport:
    """One node's end."""

    def __init__(self, network: MemoryNetwork, node: NodeId) -> None:
        self._network = network
        self._node = node

    def bind(self, receiver: Receiver) -> None:
        self._network.join(self._node, receiver)

    def send(self, node: NodeId, channel: Channel, envelopes: Sequence[Envelope]) -> None:
        self._network.send(self._node, node, channel, envelopes)
