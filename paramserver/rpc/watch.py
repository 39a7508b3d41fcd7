"""The `Watch` service: who leads what, told to every worker on one light stream (RULES C7).

Invariants: an announcement is made once a leader's no-op is applied, never before; a subscriber gets what this node
leads at once, and then each change; a slow subscriber holds at most one announcement a group (the newest). Must not
know: what subscribers do with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from consensus.core.interface import GroupId, ReplicaId
from consensus.runtime.interface import Applied, GroupListener
from paramserver.rpc.calls import Calls, Context
from paramserver.v1 import paramserver_pb2 as pb
from paramserver.wire.errors import Reason, Refusal

SERVICE = "paramserver.v1.Watch"
SUBSCRIBERS_MAX = 1024
"""Streams of announcements at a time; further ones are refused as busy."""


@dataclass(frozen=True, slots=True)
class Leads:
    """This node leads `group` in `term` and serves."""

    group: GroupId
    term: int


class Subscriber:
    def __init__(self) -> None:
        self.pending: dict[GroupId, Leads] = {}
        self.directory = 0
        """The version to tell of; 0: it was told."""
        self.wake = asyncio.Event()

    def put(self, leads: Leads) -> None:
        self.pending[leads.group] = leads
        self.wake.set()

    def put_directory(self, version: int) -> None:
        self.directory = version
        self.wake.set()


class Board:
    """What this node leads now. `leading` and `deposed` come from the groups' listeners."""

    def __init__(self) -> None:
        self._leads: dict[GroupId, Leads] = {}
        self._directory = 0
        self._subscribers: dict[Subscriber, None] = {}
        """In the order in which they came."""

    def leading(self, group: GroupId, term: int) -> None:
        leads = Leads(group, term)
        self._leads[group] = leads
        for subscriber in self._subscribers:
            subscriber.put(leads)

    def deposed(self, group: GroupId) -> None:
        self._leads.pop(group, None)

    def directory(self, version: int) -> None:
        """Nodes or members changed: whoever watches asks for them again."""
        if version > self._directory:
            self._directory = version
            for subscriber in self._subscribers:
                subscriber.put_directory(version)

    def subscribe(self) -> Subscriber:
        if len(self._subscribers) >= SUBSCRIBERS_MAX:
            raise Refusal(Reason.BUSY, f"{SUBSCRIBERS_MAX} clients watch this node, its bound", retry_after_ms=1000)
        subscriber = Subscriber()
        for leads in self._leads.values():
            subscriber.put(leads)
        if self._directory:
            subscriber.put_directory(self._directory)
        self._subscribers[subscriber] = None
        return subscriber

    def unsubscribe(self, subscriber: Subscriber) -> None:
        self._subscribers.pop(subscriber, None)

    def __len__(self) -> int:
        return len(self._subscribers)


class Announced:
    """A group's listener that tells the board who leads, and the group's owner everything."""

    def __init__(self, group: GroupId, owner: GroupListener, board: Board) -> None:
        self._group = group
        self._owner = owner
        self._board = board

    def leading(self, term: int) -> None:
        self._owner.leading(term)
        self._board.leading(self._group, term)

    def deposed(self, term: int) -> None:
        self._board.deposed(self._group)
        self._owner.deposed(term)

    def leader_changed(self, leader: ReplicaId, term: int) -> None:
        self._owner.leader_changed(leader, term)

    def applied(self, batch: Sequence[Applied]) -> None:
        self._owner.applied(batch)

    def restored(self, index: int) -> None:
        self._owner.restored(index)

    def handing_over(self, to: ReplicaId) -> None:
        self._owner.handing_over(to)

    def drained(self) -> bool:
        return self._owner.drained()

    def note(self) -> bytes:
        return self._owner.note()

    def noted(self, replica: ReplicaId, note: bytes) -> None:
        self._owner.noted(replica, note)


class WatchService:
    def __init__(self, board: Board, *, node: int, address: str, cluster: bytes, zone: str = "") -> None:
        self._board = board
        self._node = node
        self._address = address
        self._cluster = cluster
        self._zone = zone

    def handlers(self, calls: Calls) -> grpc.GenericRpcHandler:
        methods = {"Announcements": calls.server_stream(pb.AnnouncementsRequest, self._announcements)}
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def _announcements(self, request: pb.AnnouncementsRequest, context: Context) -> None:
        if request.cluster and request.cluster != self._cluster:
            raise Refusal(Reason.WRONG_CLUSTER, "the request is for another cluster", field="cluster")
        subscriber = self._board.subscribe()
        try:
            # The headers say that the stream stands, also where this node leads nothing.
            await context.send_initial_metadata(())
            if self._zone:
                label = pb.Announcement(node=self._node, address=self._address, zone=self._zone)
                await context.write(label.SerializeToString())
            while True:
                await subscriber.wake.wait()
                subscriber.wake.clear()
                pending, subscriber.pending = subscriber.pending, {}
                directory, subscriber.directory = subscriber.directory, 0
                if directory:
                    news = pb.Announcement(node=self._node, address=self._address, directory=directory)
                    await context.write(news.SerializeToString())
                for leads in pending.values():
                    announcement = pb.Announcement(
                        group=leads.group, term=leads.term, node=self._node, address=self._address
                    )
                    await context.write(announcement.SerializeToString())
        finally:
            self._board.unsubscribe(subscriber)
