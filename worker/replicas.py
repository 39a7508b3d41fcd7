"""Which replica a pull asks: all that have a version have the same bits (RULES R1), so any will do.

Owns, for all pulls of a client, what is on its way from each server, and which servers were in trouble lately.
Invariants: a server in trouble is asked only when all others of the group are, or were asked already; how long it rests
is bounded; with equal reasons servers take turns, so the choice is a function of what was asked before and nothing
else. Must not know: blocks, gRPC. Used on the client's event loop only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from paramserver.wire.zones import zone_problems
from worker.errors import InvalidArgument

SILENCE_FIRST_S = 0.25
SILENCE_MOST_S = 2.0
"""How long a server may send nothing before it is left: doubled when one was too slow, a tenth shorter when one was
not. So one that stands still is left soon, and a cluster that is slow as a whole is not asked for everything twice."""
REST_FIRST_S = 0.1
REST_MOST_S = 2.0
"""How long a server is left alone that did not answer well; doubled with each failure until something works."""


class PullPolicy(StrEnum):
    """Among replicas that are well."""

    LEAST_OUTSTANDING = "least_outstanding"
    """Who has the fewest bytes still to send to this client: fast ones get more."""
    ROUND_ROBIN = "round_robin"
    """Who was not asked for longest."""
    NEAREST = "nearest"
    """Those of this client's zone; among them, and where there is none, who has the fewest bytes still to send."""
    LEADER = "leader"
    """The group's leader: for comparison, and for readers that want the newest version first."""


@dataclass(slots=True)
class _Server:
    outstanding: int = 0
    turn: int = 0
    """When it was asked last, counted in choices; 0: never."""
    failures: int = 0
    rests_until_s: float = 0.0
    not_before_s: float = 0.0
    """Until then it is at a bound, as it said itself."""


class Replicas:
    """`zone`: this client's. `zones()`: address -> zone, of servers that have one. `now_s`: a monotonic clock.
    `first`: who of equals begins, so that clients that start together don't all ask the same server."""

    def __init__(
        self,
        policy: PullPolicy = PullPolicy.LEAST_OUTSTANDING,
        *,
        now_s: Callable[[], float],
        zone: str = "",
        zones: Callable[[], dict[str, str]] = dict,
        first: int = 0,
    ) -> None:
        self.policy = policy
        self._zone = zone
        self._zones = zones
        self._now_s = now_s
        self._first = first
        self._turns = 0
        self._silence_s = SILENCE_FIRST_S
        self._servers: dict[str, _Server] = {}

    def choose(self, candidates: Sequence[str], *, leader: str = "") -> str:
        """One of the addresses, of which there is at least one. `leader`: the group's, if known."""
        now_s = self._now_s()
        well = [one for one in candidates if self._of(one).rests_until_s <= now_s]
        if not well:
            chosen = min(candidates, key=lambda one: self._of(one).rests_until_s)
        else:
            chosen = self._by_policy(well, leader)
        self._turns += 1
        self._of(chosen).turn = self._turns
        return chosen

    def _by_policy(self, well: Sequence[str], leader: str) -> str:
        order = {one: (place + self._first) % len(well) for place, one in enumerate(well)}
        match self.policy:
            case PullPolicy.ROUND_ROBIN:
                return min(well, key=lambda one: (self._of(one).turn, order[one]))
            case PullPolicy.LEADER if leader in well:
                return leader
            case PullPolicy.NEAREST:
                zones = self._zones()
                well = [one for one in well if zones.get(one) == self._zone] or well
        return min(well, key=lambda one: (self._of(one).outstanding, self._of(one).turn, order[one]))

    # --- what came of it

    def asked(self, address: str, bytes_: int) -> None:
        self._of(address).outstanding += bytes_

    def arrived(self, address: str, bytes_: int) -> None:
        """So many of those that were asked for are here, or won't come."""
        self._of(address).outstanding -= bytes_

    def worked(self, address: str) -> None:
        server = self._of(address)
        server.failures, server.rests_until_s = 0, 0.0
        self._silence_s = max(SILENCE_FIRST_S, self._silence_s * 0.9)

    def silent(self, address: str) -> None:
        """It sent nothing for `silence_s`."""
        self._silence_s = min(SILENCE_MOST_S, self._silence_s * 2)
        self.failed(address)

    @property
    def silence_s(self) -> float:
        """For how long to wait for a server's next block while others are left to ask."""
        return self._silence_s

    def failed(self, address: str, at_least_s: float = 0.0) -> None:
        """It refused, broke off, or was silent: let it rest, as long as it asked for if it did."""
        server = self._of(address)
        rest_s = min(REST_MOST_S, max(at_least_s, REST_FIRST_S * 2.0**server.failures))
        server.failures = min(server.failures + 1, 16)
        server.rests_until_s = self._now_s() + rest_s
        server.not_before_s = self._now_s() + at_least_s

    def pause_s(self, address: str) -> float:
        """So long it asked to be left alone, from now on."""
        return max(0.0, self._of(address).not_before_s - self._now_s())

    def outstanding(self, address: str) -> int:
        """Bytes asked of it that have not come."""
        return self._of(address).outstanding

    def _of(self, address: str) -> _Server:
        # As many as the cluster ever had servers.
        return self._servers.setdefault(address, _Server())


def checked_policy(policy: str, zone: str) -> PullPolicy:
    """Raises InvalidArgument."""
    if zone and (problems := list(zone_problems("zone", zone))):
        raise InvalidArgument("; ".join(map(str, problems)))
    try:
        known = PullPolicy(policy)
    except ValueError:
        raise InvalidArgument(f"pull_policy {policy!r}", f"expected one of {', '.join(PullPolicy)}") from None
    if known is PullPolicy.NEAREST and not zone:
        raise InvalidArgument(
            "pull_policy 'nearest' without a zone", "pass zone=..., the label that near servers have as --zone"
        )
    return known
