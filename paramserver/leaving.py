"""A node that stops gives its leaderships away first: a planned stop costs transfers and no election (RULES C6).

Invariant: it waits for a bounded time, whatever the others do. Must not know: what else a stop takes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Set

from consensus.core.interface import GroupId, NodeId, Role
from consensus.runtime import GroupHandle
from paramserver.catalogue.state import Node, NodeState

log = logging.getLogger("paramserver")

HAND_OVER_S = 1.0
"""What a stopping node gives its leaderships to go to others; then it stops all the same."""


async def hand_over(
    groups: Mapping[GroupId, GroupHandle], connected: Set[NodeId], nodes: Mapping[NodeId, Node]
) -> None:
    """`groups`: all that are here. `connected`: who can take over. `nodes`: as far as group 0 told of them."""
    waiting: set[GroupId] = set()
    over = asyncio.Event()
    over.set()

    def fit(number: NodeId) -> bool:
        """It may lead."""
        known = nodes.get(number)
        return known is None or known.state is NodeState.ACTIVE

    def ended(group: GroupId) -> None:
        waiting.discard(group)
        if not waiting:
            over.set()

    for group, handle in groups.items():
        core = handle.status().core
        if core is None or core.role is not Role.LEADER or core.configuration is None:
            continue
        others = [
            voter
            for voter in core.configuration.voters
            if voter != handle.replica and handle.nodes.get(voter) in connected
        ]
        if others:
            waiting.add(group)
            over.clear()
            best = max(others, key=lambda voter: (fit(handle.nodes[voter]), core.match.get(voter, 0)))
            handle.transfer(best, lambda _, group=group: ended(group))  # type: ignore[misc]
    try:
        async with asyncio.timeout(HAND_OVER_S):
            await over.wait()
    except TimeoutError:
        log.warning("stopping while group%s %s still led here", "s" * (len(waiting) > 1), sorted(waiting))
