"""Where the replicas of a group live, as far as this replica can know.

Owns the map. The configuration in force says it; the host knew it for members of the bootstrap; a member of the past is
still found where it lived, to be told that it is none any more; and who is not known yet (a leader that joined after
the end of this log) is answered where its message came from. Invariants: one replica never has two homes; what is
learned from messages is bounded. Must not know: messages.
"""

from __future__ import annotations

from collections.abc import Mapping

from consensus.core.configuration import members_of
from consensus.core.interface import Configuration, NodeId, ReplicaId

BOOTSTRAP_REPLICAS_MAX = 1 << 16
"""Replicas of the bootstrap carry their node's id; ids of later ones begin here."""
PAST_MAX = 1024
"""Homes of members of the past that are remembered; the oldest are forgotten."""
STRANGERS_MAX = 64
"""Senders whose home is known from their messages only; the oldest are forgotten."""


class Homes:
    __slots__ = ("_known", "_strangers")

    def __init__(self, given: Mapping[ReplicaId, NodeId], configuration: Configuration) -> None:
        self._known: dict[ReplicaId, NodeId] = dict(given)
        self._strangers: dict[ReplicaId, NodeId] = {}
        self.follow(configuration)

    def follow(self, configuration: Configuration) -> None:
        """The configuration in force changed. Homes of members of the past stay: they are told that they are none."""
        members = members_of(configuration)
        for home in configuration.homes:
            self._known[home.replica] = home.node
        for member in members:
            if member < BOOTSTRAP_REPLICAS_MAX:
                self._known.setdefault(member, member)
        past = [replica for replica in self._known if replica not in members]
        for replica in past[: max(0, len(past) - PAST_MAX)]:
            del self._known[replica]
        for replica in [replica for replica in self._strangers if replica in self._known]:
            del self._strangers[replica]

    def node_of(self, replica: ReplicaId) -> NodeId:
        """0: unknown."""
        return self._known.get(replica) or self._strangers.get(replica, 0)

    def replicas_on(self, node: NodeId) -> list[ReplicaId]:
        return [replica for replica, home in self._known.items() if home == node]

    def heard(self, replica: ReplicaId, node: NodeId) -> bool:
        """A message of that replica came from that node; False when it lives elsewhere."""
        known = self._known.get(replica)
        if known is not None:
            return known == node
        self._strangers.pop(replica, None)
        while len(self._strangers) >= STRANGERS_MAX:
            del self._strangers[next(iter(self._strangers))]
        self._strangers[replica] = node
        return True

    @property
    def known(self) -> Mapping[ReplicaId, NodeId]:
        return self._known
