"""How a group's messages leave its node.

Owns the way of one message: to which node, on which channel, with which note of the owner's. Invariants: what carries
payload never goes in front of control messages; a message whose receiver has no known home is dropped and counted; a
note is bounded. Must not know: cores, connections, what notes mean.
"""

from __future__ import annotations

from consensus.core.interface import AppendRequest, AppendResponse, GroupId, HeartbeatResponse
from consensus.runtime.homes import Homes
from consensus.runtime.interface import GroupListener
from consensus.runtime.services import Services
from consensus.transport.interface import Channel, Envelope, SnapshotChunk, TransportMessage


def channel_of(message: TransportMessage) -> Channel:
    """Bulk takes what carries payload, and every append request, so that they stay in order; all else is control and
    never waits behind payload (RULES C3, HAZARDS 30)."""
    return Channel.BULK if isinstance(message, AppendRequest | SnapshotChunk) else Channel.CONTROL


class Outbox:
    """Of one group."""

    __slots__ = ("_group", "_homes", "_listener", "_services")

    def __init__(self, services: Services, *, group: GroupId, homes: Homes, listener: GroupListener) -> None:
        self._services = services
        self._group = group
        self._homes = homes
        self._listener = listener

    def send(self, message: TransportMessage) -> None:
        node = self._homes.node_of(message.to)
        if not node:
            self._services.dropped["peer_without_node"] += 1
            return
        note = b""
        if isinstance(message, AppendResponse | HeartbeatResponse):
            note = self._listener.note()
            if len(note) > self._services.options.note_bytes_max:
                self._services.dropped["note_too_long"] += 1
                note = b""
        self._services.send(node, channel_of(message), Envelope(self._group, message, note))
