"""Reads of a simulated worker that must be new, beside its training: linearizable and bounded ones, at any replica.

What it checks (RULES R2, R3): a linearizable read holds every step that any rank had seen the end of when the read
began, a bounded one every step seen so long before, whoever serves it and whatever happened to it meanwhile; and the
bits are the reference run's, in whichever codec. Some ask only for what is newer than what was seen; that there is none
is an answer as new as any. Refusals are no fault: without a quorum they are what is promised. Must not know: ranks,
leaders.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any, Protocol

from consensus.simulation.cluster import Cluster
from consensus.simulation.errors import Violated
from consensus.simulation.profile import between
from consensus.simulation.schedule import MS
from paramserver.lab.simulation.reference import Training, rounded
from paramserver.v1 import paramserver_pb2 as pb
from paramserver.wire.checksum import crc32c
from paramserver.wire.codecs import Codec, decode
from paramserver.wire.errors import Reason, Refusal
from paramserver.wire.frames import BlockFrame, BlockStatus
from worker.catalogue import Description
from worker.membership import Cluster as KnownCluster
from worker.network import Network

PAUSE_MS = (10, 150)
BOUNDS_MS = (10, 100, 500, 3000)
TIMEOUT_S = 2.0
NEVER = frozenset({Reason.INVALID, Reason.GONE, Reason.STALE_EPOCH, Reason.WRONG_CLUSTER})
"""Refusals that no such read may meet."""


class World(Protocol):
    cluster: Cluster

    @property
    def training(self) -> Training: ...

    def steps_seen(self, at_us: int) -> int: ...


class Reader:
    def __init__(
        self,
        world: World,
        name: str,
        source: random.Random,
        *,
        network: Network,
        known: KnownCluster,
        model: Description,
    ) -> None:
        self._world = world
        self._name = name
        self._random = source
        self._network = network
        self._known = known
        self._model = model
        self._reads = 0
        self._newest = 0
        """The highest version that was seen."""

    async def run(self) -> None:
        while True:
            await asyncio.sleep(between(self._random, PAUSE_MS) * MS / 1_000_000)
            bounded_ms = self._random.choice((0, 0, *BOUNDS_MS))
            shard = self._random.choice(self._model.shards)
            address = self._random.choice(self._known.addresses(shard.group))
            await self._read(address, shard.group, bounded_ms)

    async def _read(self, address: str, group: int, bounded_ms: int) -> None:
        counts = self._world.cluster.counts
        what = f"read bounded by {bounded_ms} ms" if bounded_ms else "linearizable read"
        kind = "bounded" if bounded_ms else "linearizable"
        request = pb.PullRequest(
            cluster=self._known.identity,
            group=group,
            model=self._model.model,
            generation=self._model.generation,
            placement_epoch=self._model.placement_epoch,
            min_version=0,
            linearizable=not bounded_ms,
            bounded_ms=bounded_ms,
            codec=int(tuple(Codec)[self._reads % 3]),  # type: ignore[arg-type]
            if_newer_than=self._newest if self._reads % 4 == 3 else None,
        )
        self._reads += 1
        least = self._world.steps_seen(self._world.cluster.scheduler.now_us - bounded_ms * MS)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                async with contextlib.aclosing(self._network.pull(address, request, TIMEOUT_S)) as frames:
                    async for frame in frames:
                        self._check(f"{what} of group {group} at {address}", request, frame, least)
        except TimeoutError:
            counts[f"{kind} reads without an answer"] += 1
        except Refusal as refusal:
            if refusal.reason in NEVER:
                raise Violated(f"{self._name}: {what} of group {group} at {address} was refused: {refusal}") from None
            counts[f"{kind} reads refused"] += 1
        else:
            counts[f"{kind} reads"] += 1

    def _check(self, what: str, request: Any, frame: BlockFrame, least: int) -> None:
        if frame.version < least:
            raise Violated(
                f"{self._name}: {what} gave version {frame.version} of block {frame.block}, step {least} was over"
            )
        if request.bounded_ms and frame.age_ms > request.bounded_ms:
            raise Violated(f"{self._name}: {what} gave block {frame.block}, {frame.age_ms} ms old")
        self._newest = max(self._newest, frame.version)
        newer = not request.HasField("if_newer_than") or frame.version > request.if_newer_than
        if newer == (frame.status is BlockStatus.NOT_NEWER):
            raise Violated(f"{self._name}: {what} gave block {frame.block}, version {frame.version}, newer or not")
        if not newer:
            self._world.cluster.counts["reads of nothing newer"] += 1
            return
        training = self._world.training
        place = training.layout.block_slice(frame.block)
        expected = rounded(Codec(request.codec), training.at(frame.version)[place])
        came = decode(frame.codec, frame.payload, expected.size)
        if came.tobytes() != expected.tobytes() or frame.crc != crc32c(frame.payload):
            raise Violated(
                f"{self._name}: {what} gave block {frame.block}, version {frame.version}, with other bits than the "
                "reference run"
            )
