"""A person who moves replicas, drains and replaces nodes, and hands leaderships over, while everything else goes on.

Owns what is asked for and when; it is asked over calls like anybody's, of whoever leads group 0, again and again until
there is an answer (RULES A4). Invariant: what is refused was refused for good, and changes nothing. Must not know: how
anything is carried out.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Protocol

from consensus.core.interface import GroupId, NodeId
from consensus.simulation.cluster import Cluster
from consensus.simulation.loop import VirtualLoop, virtual_loop
from consensus.simulation.profile import between
from consensus.simulation.schedule import stream
from paramserver.lab.simulation.calls import Caller, Service, node_of
from paramserver.lab.simulation.line import Line
from paramserver.v1 import paramserver_pb2 as pb
from paramserver.wire.errors import Reason, Refusal

PAUSE_MS = (20, 400)
"""Between the answer to one wish and the next."""
AGAIN_S = 0.1
CALL_TIMEOUT_S = 2.0


class World(Protocol):
    cluster: Cluster

    def service(self, node: NodeId) -> Service | None: ...

    def line(self, line: Line) -> None: ...


class SimulatedOperator:
    """Of `nodes`, the last of which holds nothing at first, and of the groups. It lives through the whole run."""

    def __init__(self, world: World, nodes: Sequence[NodeId], groups: Sequence[GroupId]) -> None:
        self._world = world
        self._nodes = list(nodes)
        self._groups = list(groups)
        self._random = stream(world.cluster.seed, "operator")
        self._secret = self._random.randbytes(32)
        self._session = 0
        self._sequence = 0
        self._asking = 0
        self._replaces = 1
        """Nodes it still has to give away."""
        self._over = False
        scheduler = world.cluster.scheduler

        def later(delay_us: int, action: Callable[[], None]) -> None:
            scheduler.after(delay_us, action)

        self._loop: VirtualLoop = virtual_loop(later, lambda: scheduler.now_us)
        self._caller = Caller(
            world.cluster, "operator", self._random, later=later, service=world.service, keep=world.line
        )

    def start(self) -> None:
        with self._loop.running():
            self._loop.create_task(self._run(), name="operator")

    def settle(self) -> None:
        """It wants nothing more."""
        self._over = True

    @property
    def idle(self) -> bool:
        """No wish waits for its answer."""
        return not self._asking

    def close(self) -> None:
        self._over = True
        self._loop.close()

    # --- what it does

    async def _run(self) -> None:
        while not self._over:
            await asyncio.sleep(between(self._random, PAUSE_MS) / 1_000_000 * 1000)
            if self._over:
                return
            self._asking = 1
            await self._ask(*self._draw(self._random))
            self._asking = 0

    def _draw(self, source: random.Random) -> tuple[str, pb.ReshapeRequest]:
        """What it is called, and the wish; some are for what can't be."""
        *first, spare = self._nodes
        group, node = source.choice(self._groups), source.choice(self._nodes)
        other = spare if source.random() < 0.6 else source.choice(self._nodes)
        kinds = ["transfer", "move", "move", "move", "move", "drain", "leaders", "undo", "undo", "cancel"]
        kind = source.choice([*kinds, *["replace"] * self._replaces])
        if kind in ("move", "replace"):
            node = source.choice([one for one in (*first, *first, spare) if one != other])
        match kind:
            case "transfer":
                wish = pb.ReshapeRequest(transfer=pb.TransferTo(group=group, to_node=node))
            case "move":
                wish = pb.ReshapeRequest(move=pb.MoveReplica(group=group, from_node=node, to_node=other))
            case "drain":
                wish = pb.ReshapeRequest(drain=pb.DrainNode(node=node))
            case "leaders":
                wish = pb.ReshapeRequest(drain=pb.DrainNode(node=node, leaders_only=True))
            case "undo":
                wish = pb.ReshapeRequest(drain=pb.DrainNode(node=node, undo=True))
            case "replace":
                wish = pb.ReshapeRequest(replace=pb.ReplaceNode(node=node, by=other))
            case _:
                wish = pb.ReshapeRequest(cancel=pb.CancelMove(group=group))
        return kind, wish

    async def _ask(self, kind: str, wish: pb.ReshapeRequest) -> None:
        trace, counts = self._world.cluster.trace, self._world.cluster.counts
        trace.add("operator", f"wants {str(wish).split()}")
        self._sequence += 1
        try:
            if not self._session:
                opening = pb.OpenSessionRequest(
                    client=self._secret[:16], secret_digest=sha256(self._secret).digest(), name="operator"
                )
                answer = await self._leader("Catalogue/OpenSession", opening.SerializeToString())
                self._session = pb.OpenSessionResponse.FromString(answer).session
            wish.session, wish.sequence, wish.secret = self._session, self._sequence, self._secret
            done = pb.ReshapeResponse.FromString(await self._leader("Admin/Reshape", wish.SerializeToString()))
        except Refusal as refusal:
            trace.add("operator", f"is refused: {refusal.message}")
            counts[f"wish to {kind} refused"] += 1
            return
        if kind == "replace":
            self._replaces -= 1
        trace.add("operator", f"is answered: {'; '.join(done.steps)}")
        counts[f"wish to {kind} granted"] += 1

    async def _leader(self, method: str, request: bytes) -> bytes:
        """Of whoever leads group 0. Raises `Refusal` for what is refused for good, and once nothing more is wanted."""
        node = self._random.choice(self._nodes)
        while True:
            try:
                return await self._caller.unary(node, method, request, CALL_TIMEOUT_S)
            except Refusal as refusal:
                retry = refusal.retryable or refusal.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED")
                if not retry or self._over:
                    raise
                there = refusal.reason is Reason.NOT_LEADER and refusal.leader_address
                node = node_of(refusal.leader_address) if there else self._random.choice(self._nodes)
                await asyncio.sleep(AGAIN_S)
