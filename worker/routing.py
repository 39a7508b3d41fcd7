"""Who leads what, as far as this worker knows.

Owns the client's budget of repeated attempts, and one route a group, made of announcements (RULES C7), hints in
refusals, and the description of the cluster. Invariants: the term of a group's route never goes back, and the highest
one is followed at once; a route that failed is `suspect` until a newer one comes or it works again, and is never thrown
away, for it may have been only its connection. Must not know: channels, steps. It is used on the client's event loop
only.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from worker.retry import RetryBudget

GROUPS_MAX = 65_536
"""Routes kept; announcements beyond are ignored (no cluster has as many groups)."""


@dataclass(frozen=True, slots=True)
class Route:
    """`address` leads `group` in `term`. `node` 0: known by address only. Suspect: the last attempt there failed."""

    group: int
    term: int
    address: str
    node: int = 0
    suspect: bool = False


class Routes:
    """Leader cache of a client."""

    def __init__(self) -> None:
        self.retries = RetryBudget()
        """How often all who ask along these routes ask again."""
        self._routes: dict[int, Route] = {}
        self._changed: dict[int, asyncio.Event] = {}

    def get(self, group: int) -> Route | None:
        return self._routes.get(group)

    def known(self) -> dict[int, Route]:
        return dict(self._routes)

    def learn(self, *, group: int, term: int, address: str, node: int = 0) -> bool:
        """Take news; True when the route changed. An older term is stale news, the same term clears suspicion: the
        leader itself spoke again (an announcement stream that was opened anew)."""
        known = self._routes.get(group)
        if not address or (known is None and len(self._routes) >= GROUPS_MAX):
            return False
        if known is not None:
            if term < known.term:
                return False
            if term == known.term and known.address == address and not known.suspect:
                return False
        self._routes[group] = Route(group, term, address, node)
        self._tell(group)
        return True

    def hint(self, *, group: int, term: int, address: str) -> bool:
        """A refusal named a leader. Unlike an announcement it is hearsay: in the term already known it changes
        nothing, so two nodes that name each other cannot send a worker round in circles."""
        known = self._routes.get(group)
        if known is not None and term <= known.term:
            return False
        return self.learn(group=group, term=term, address=address)

    def suspect(self, route: Route) -> None:
        """An attempt at this route failed; ignored when a newer route is already there."""
        if self._routes.get(route.group) == route:
            self._routes[route.group] = replace(route, suspect=True)

    def trust(self, route: Route) -> None:
        """It works (again)."""
        known = self._routes.get(route.group)
        if known is not None and known.suspect and (known.term, known.address) == (route.term, route.address):
            self._routes[route.group] = replace(known, suspect=False)

    async def changed(self, group: int, timeout_s: float | None = None) -> bool:
        """Wait for news of this group from now on; False after `timeout_s` without any."""
        event = self._changed.setdefault(group, asyncio.Event())
        try:
            async with asyncio.timeout(timeout_s):
                await event.wait()
        except TimeoutError:
            return False
        return True

    async def moved(self, route: Route) -> Route:
        """Wait until the group is led elsewhere, or in a later term, than `route` says."""
        while True:
            known = self._routes.get(route.group)
            if known is not None and (known.term, known.address) != (route.term, route.address):
                return known
            await self.changed(route.group)

    def _tell(self, group: int) -> None:
        event = self._changed.pop(group, None)
        if event is not None:
            event.set()
