"""Append requests whose entries were left to the log on disk: read back, then sent.

Owns what waits for that. Invariants: the requests to a member leave in the order in which they came; of each member at
most one at a time is being read, or was read and is not sent; one whose entries are not in the log any more, because a
snapshot or another leader's entries took their place, is dropped, as if the network had lost it, and so is what comes
when too much waits: the core asks again, or sends a snapshot. Must not know: the core, files.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from consensus.core.interface import AppendRequest, Entry, GroupId, ReplicaId
from consensus.runtime.services import LOADS_LANE, Services

WAITING_MAX = 256
"""Requests to one member; the core has fewer on their way, but for those it gave up."""


class Loading:
    """Of one group."""

    __slots__ = ("_group", "_send", "_services", "_waiting")

    def __init__(self, services: Services, *, group: GroupId, send: Callable[[AppendRequest], None]) -> None:
        self._services = services
        self._group = group
        self._send = send
        self._waiting: dict[ReplicaId, deque[AppendRequest]] = {}
        """Those of each member that wait, while the one before them is being read."""

    def send(self, request: AppendRequest) -> None:
        waiting = self._waiting.get(request.to)
        if waiting is not None:
            if len(waiting) < WAITING_MAX:
                waiting.append(request)
            else:
                self._services.dropped["too_many_requests_to_load"] += 1
        elif _is_whole(request):
            self._send(request)
        else:
            self._waiting[request.to] = deque()
            self._load(request)

    def _load(self, request: AppendRequest) -> None:
        writer, group = self._services.writer, self._group
        self._services.run(
            LOADS_LANE, lambda: writer.load(group, request.entries), lambda entries: self._loaded(request, entries)
        )

    def _loaded(self, request: AppendRequest, entries: tuple[Entry, ...] | None) -> None:
        if entries is None:
            self._services.dropped["entries_left_the_log"] += 1
        else:
            self._send(_with(request, entries))
        waiting = self._waiting[request.to]
        while waiting:
            following = waiting.popleft()
            if not _is_whole(following):
                self._load(following)
                return
            self._send(following)
        del self._waiting[request.to]


def _is_whole(request: AppendRequest) -> bool:
    return not any(entry.stored_bytes for entry in request.entries)


def _with(request: AppendRequest, entries: tuple[Entry, ...]) -> AppendRequest:
    return AppendRequest(
        sender=request.sender,
        to=request.to,
        term=request.term,
        incarnation=request.incarnation,
        previous_index=request.previous_index,
        previous_term=request.previous_term,
        commit=request.commit,
        entries=entries,
    )
