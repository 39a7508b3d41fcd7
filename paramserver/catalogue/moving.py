"""Carries replicas from node to node, as group 0 intends it (RULES I3).

For every move it looks at the group's own configuration and does the next thing: order the replica at its node, make it
a learner, and when it is caught up make it a voter and take the old one out, in one joint change; then order the old
one's deletion. Whatever crashed before, what is to be done next follows from what is there, so a new leader of group 0
goes on where it finds things. Invariants: only a leader of group 0 drives; nothing is deleted before a committed
configuration without it; every change names the configuration it was made from, so a driver of the past changes
nothing. Must not know: how nodes are reached, what groups hold.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from consensus.core.interface import GroupId, Home, NodeId, ReplicaId
from paramserver.catalogue.pictures import GroupPicture, Hands
from paramserver.catalogue.placement import (
    Leftover,
    LeftoverDeleted,
    Members,
    Move,
    MoveAdvanced,
    MoveEnded,
    NodeRemoved,
    Placement,
    PlacementCommand,
    Stage,
)
from paramserver.catalogue.state import NodeState
from paramserver.wire.errors import Reason, Refusal

log = logging.getLogger(__name__)

MOVES_AT_ONCE = 4
"""Moves looked at and stepped at a time; the others wait for their turn."""
POLL_MS = 50
"""Between two looks at a group in which something is under way."""
BACK_OFF_MS = (50, 100, 250, 500, 1000)
"""Between attempts that fail; the last one repeats."""
FAREWELLS = 5
"""Attempts to tell a removed node that it is; then it has to find out by itself."""


class Mover:
    """All moves of one tenure. `commit` has a command applied in group 0 and raises `Refusal` when it could not."""

    def __init__(
        self,
        placement: Callable[[], Placement],
        groups: Callable[[], tuple[GroupId, ...]],
        hands: Hands,
        commit: Callable[[PlacementCommand], Awaitable[object]],
    ) -> None:
        self._placement = placement
        self._groups = groups
        self._hands = hands
        self._commit = commit
        self._tasks: dict[object, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(MOVES_AT_ONCE)
        self._told: dict[NodeId, int] = {}
        self._troubles: dict[object, str] = {}
        self._handed: set[tuple[GroupId, int]] = set()
        """(group, term) in which an old leader was asked to hand over."""
        self._ended = False

    # --- the tenure

    def poke(self) -> None:
        """Something was decided: carry it out."""
        if self._ended:
            return
        placement = self._placement()
        for number in placement.moves:
            self._start(("move", number), lambda number=number: self._move(number))  # type: ignore[misc]
        for leftover in placement.leftovers:
            self._start(leftover, lambda leftover=leftover: self._delete(leftover))  # type: ignore[misc]
        for node in placement.nodes.values():
            if self._told.get(node.node, 0) < placement.directory:
                self._start(("directory", node.node), lambda node=node.node: self._tell(node))  # type: ignore[misc]
            if node.then_remove and node.state is NodeState.DRAINING:
                self._start(("remove", node.node), lambda node=node.node: self._remove(node))  # type: ignore[misc]

    def end(self) -> None:
        """Leadership is lost."""
        self._ended = True
        for task in self._tasks.values():
            task.cancel()

    def behind(self) -> tuple[NodeId, ...]:
        """Nodes that have not confirmed the newest directory to this leader."""
        placement = self._placement()
        return tuple(
            node.node
            for node in placement.nodes.values()
            if node.state is not NodeState.REMOVED and self._told.get(node.node, 0) < placement.directory
        )

    def trouble_of(self, what: Move | Leftover) -> str:
        return self._troubles.get(("move", what.move) if isinstance(what, Move) else what, "")

    def troubles(self) -> list[str]:
        """One line for each thing that fails at the moment."""
        placement = self._placement()
        lines = []
        for move in placement.moves.values():
            if trouble := self.trouble_of(move):
                lines.append(f"group {move.group} does not move to node {move.to_node}: {trouble}")
        return lines

    # --- tasks

    def _start(self, key: object, work: Callable[[], Coroutine[Any, Any, bool]]) -> None:
        if key not in self._tasks:
            self._tasks[key] = asyncio.create_task(self._run(key, work), name=f"placement {key}")

    async def _run(self, key: object, work: Callable[[], Coroutine[Any, Any, bool]]) -> None:
        """Again and again until `work` says that it is over. It returns False for "look again soon"."""
        failures = 0
        try:
            while True:
                try:
                    over = await work()
                    self._troubles.pop(key, None)
                    failures = 0
                    if over:
                        break
                    await asyncio.sleep(POLL_MS / 1000)
                    continue
                except Refusal as refusal:
                    trouble = refusal.message
                except Exception as error:  # a defect must not stop the driver, nor spin it
                    log.exception("%s failed", _named(key))
                    trouble = type(error).__name__
                if trouble != self._troubles.get(key):
                    log.info("%s: %s", _named(key), trouble)
                self._troubles[key] = trouble
                await asyncio.sleep(BACK_OFF_MS[min(failures, len(BACK_OFF_MS) - 1)] / 1000)
                failures += 1
        finally:
            del self._tasks[key]
            self._troubles.pop(key, None)
        self.poke()

    # --- one move

    async def _move(self, number: int) -> bool:
        async with self._slots:
            while True:
                move = self._placement().moves.get(number)
                if move is None:
                    return True
                if not await self._next(move):
                    await asyncio.sleep(POLL_MS / 1000)

    async def _next(self, move: Move) -> bool:
        """One step; False when there is only waiting to do."""
        picture = await self._hands.look(move.group)
        configuration = picture.configuration
        if not picture.settled:
            if configuration.outgoing:
                await self._advance(move, Stage.SWAP)
            return False
        member = move.replica in picture.members
        if move.replica in configuration.voters:
            if move.old in picture.members:
                return await self._swap(move, picture)
            await self._end(move, picture, done=True)
        elif move.cancelled:
            if member:
                learners = tuple(one for one in configuration.learners if one != move.replica)
                await self._hands.change(picture, voters=configuration.voters, learners=learners)
            else:
                await self._end(move, picture, done=False)
        elif member:
            await self._advance(move, Stage.LEARN)
            return await self._swap(move, picture)
        elif move.replica < picture.next_replica:
            # It was a member before and was taken out, or its id is used up: this one never comes in.
            await self._end(move, picture, done=False)
        else:
            await self._create(move, picture)
        return True

    async def _create(self, move: Move, picture: GroupPicture) -> None:
        configuration = picture.configuration
        home = _target(move)
        await self._hands.create(home, move.group, move.replica, configuration)
        learners = (*configuration.learners, move.replica)
        await self._hands.change(picture, voters=configuration.voters, learners=learners, new=home)

    async def _swap(self, move: Move, picture: GroupPicture) -> bool:
        """In one joint change: the new one votes, in the place of the old, which is out. The leader refuses while the
        new one lags behind."""
        configuration = picture.configuration
        if move.old and picture.leader == move.old and (successor := self._successor(move, picture)):
            if await self._handed_over(picture, successor):
                return False
        voters = configuration.voters
        if move.old in voters:
            voters = tuple(move.replica if voter == move.old else voter for voter in voters)
        elif move.replica not in voters:
            voters = (*voters, move.replica)
        learners = tuple(one for one in configuration.learners if one not in (move.replica, move.old))
        try:
            await self._hands.change(picture, voters=voters, learners=learners)
        except Refusal as refusal:
            if refusal.reason is not Reason.NOT_READY:
                raise
            behind = f"{picture.match.get(move.replica, 0)} of {picture.last_index}"
            raise Refusal(Reason.NOT_READY, f"replica {move.replica} holds {behind}: {refusal.message}") from None
        return True

    def _successor(self, move: Move, picture: GroupPicture) -> ReplicaId:
        """Who leads while the old leader leaves; 0: nobody else can, so the core sees to it."""
        nodes = self._placement().nodes
        others = [voter for voter in picture.configuration.voters if voter not in (move.old, move.replica)]

        def fitness(voter: ReplicaId) -> tuple[bool, int]:
            node = nodes.get(picture.node_of(voter))
            return node is None or node.state is NodeState.ACTIVE, picture.match.get(voter, 0)

        best = max(others, key=fitness, default=0)
        return best if best and picture.match.get(best, 0) > 0 else 0

    async def _handed_over(self, picture: GroupPicture, to: ReplicaId) -> bool:
        """Asked once a term: a leader that can't hand over takes itself out, which the core can do as well."""
        if (picture.group, picture.term) in self._handed:
            return False
        self._handed.add((picture.group, picture.term))
        try:
            await self._hands.transfer(picture, to)
        except Refusal as refusal:
            log.info("group %d: leadership stays with replica %d: %s", picture.group, picture.leader, refusal.message)
            return False
        return True

    async def _advance(self, move: Move, stage: Stage) -> None:
        if move.stage < stage:
            await self._commit(MoveAdvanced(move.move, stage))

    async def _end(self, move: Move, picture: GroupPicture, *, done: bool) -> None:
        members = Members(picture.index, picture.configuration)
        await self._commit(MoveEnded(move.move, move.group, members, done))
        log.info(
            "group %d: replica %d at node %d %s",
            move.group,
            move.replica,
            move.to_node,
            f"votes, replica {move.old} is out" if done else "was given up",
        )
        self.poke()

    # --- what follows

    async def _delete(self, leftover: Leftover) -> bool:
        if leftover in self._placement().leftovers:
            home = Home(leftover.replica, leftover.node, leftover.node_uuid, self._address(leftover.node))
            await self._hands.delete(home, leftover.group, leftover.replica)
            await self._commit(LeftoverDeleted(leftover.group, leftover.replica))
        return True

    async def _tell(self, number: NodeId) -> bool:
        for attempt in range(1, 1_000_000):
            placement = self._placement()
            node = placement.nodes[number]
            try:
                await self._hands.tell(node, placement)
                self._told[number] = placement.directory
                return True
            except Refusal:
                if node.state is not NodeState.REMOVED:
                    raise
                if attempt >= FAREWELLS:
                    self._told[number] = placement.directory
                    return True
            await asyncio.sleep(BACK_OFF_MS[-1] / 1000)
        return True

    async def _remove(self, number: NodeId) -> bool:
        """A node that is to be removed when it is drained."""
        placement = self._placement()
        node = placement.nodes[number]
        if not node.then_remove or node.state is not NodeState.DRAINING:
            return True
        if any(number in (move.from_node, move.to_node) for move in placement.moves.values()):
            return False
        survey = await self._hands.survey(placement.nodes.values(), self._groups())
        if survey.silent:
            raise Refusal(Reason.NOT_READY, f"groups {', '.join(map(str, survey.silent))} do not answer")
        held = sorted(group for group, picture in survey.groups.items() if picture.at(number))
        if held:
            raise Refusal(Reason.CONFLICT, f"node {number} still holds replicas of groups {', '.join(map(str, held))}")
        await self._commit(NodeRemoved(number, node.node_uuid))
        return True

    def _address(self, node: NodeId) -> str:
        known = self._placement().nodes.get(node)
        return known.address if known is not None else ""


def _named(key: object) -> str:
    if isinstance(key, Leftover):
        return f"deleting replica {key.replica} of group {key.group} at node {key.node}"
    what, number = key if isinstance(key, tuple) else (key, "")
    return {"move": "move", "directory": "telling node", "remove": "removing node"}.get(what, str(what)) + f" {number}"


def _target(move: Move) -> Home:
    return Home(move.replica, move.to_node, move.to_uuid, move.to_address)
