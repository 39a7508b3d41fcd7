"""Blocks of a model at a version, from any replica that has them (RULES R1).

Invariants: a pull of a version gives exactly that version of every block; what one replica sent is kept when it breaks
off, and only the rest is asked for elsewhere; a version is Gone only when a replica said so and none of the others has
it. Must not know: steps.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from paramserver.v1 import paramserver_pb2 as pb
from paramserver.wire.codecs import Codec
from paramserver.wire.errors import Reason, Refusal
from paramserver.wire.frames import BlockFrame, BlockStatus
from paramserver.wire.layout import Flat, Layout
from worker.catalogue import Description, Shard
from worker.consistency import ANY, Consistency
from worker.errors import ProtocolError
from worker.membership import Cluster
from worker.network import Network
from worker.refusals import to_error, transient
from worker.retry import Backoff, BackoffOptions
from worker.routing import Routes
from worker.steps import ChecksumMismatch, copy_block
from worker.tasks import all_of

ATTEMPT_TIMEOUT_S = 5.0
"""One Pull at one replica; it may be waiting there for a version that is on its way."""
SILENCE_S = 1.0
"""A replica that sends nothing for so long is left for the next one."""
BLOCKS_A_PULL_MAX = 16_384
"""Named in one pull: servers refuse more."""
BACKOFF = BackoffOptions(first_ms=5, most_ms=100)


@dataclass(frozen=True, slots=True)
class Want:
    """Exactly `version`, or at least `min_version`, as new as `consistency` says. `newer_than`: weights only of blocks
    above that version; not with `version`."""

    version: int | None = None
    min_version: int = 0
    consistency: Consistency = ANY
    newer_than: int | None = None

    def fits(self, version: int) -> bool:
        return version == self.version if self.version is not None else version >= self.min_version


class Got(NamedTuple):
    """A block as it came. `age_ms`: of a consistent pull, how old it was at most when its replica read it. Not `fresh`:
    it is no newer than what was asked for, and its weights were not sent."""

    version: int
    age_ms: int = 0
    fresh: bool = True


class Puller:
    """Pulls of one model."""

    def __init__(
        self,
        *,
        network: Network,
        cluster: Cluster,
        routes: Routes,
        model: Callable[[], Description],
        layout: Layout,
        codec: Codec = Codec.FP32,
    ) -> None:
        """`codec`: in which weights are to come."""
        self._network = network
        self._cluster = cluster
        self._routes = routes
        self._model = model
        self._layout = layout
        self._codec = codec
        self.problems: dict[int, str] = {}
        """Group -> why the last attempt failed, while one is in trouble."""

    async def pull(self, want: Want, target: Flat, blocks: Iterable[int] | None = None) -> dict[int, Got]:
        """Fill `target` (elements,) with all blocks, or with `blocks`; what came, by block. Goes on until it is
        cancelled."""
        wanted = None if blocks is None else set(blocks)
        got: dict[int, Got] = {}
        groups = []
        for shard in self._model().shards:
            missing = set(range(shard.first, shard.first + shard.count))
            if wanted is not None:
                missing &= wanted
            if missing:
                groups.append(self._group(shard, missing, want, target, got))
        await all_of(groups)
        return got

    async def _group(self, shard: Shard, missing: set[int], want: Want, target: Flat, got: dict[int, Got]) -> None:
        backoff = Backoff(BACKOFF, budget=self._routes.retries)
        gone: dict[str, Refusal] = {}
        while missing:
            # Of those that are at a bound the one that is free first says when; others are asked before.
            later_ms: list[int] = []
            for address in self._replicas(shard.group):
                try:
                    await self._attempt(address, shard, missing, want, target, got)
                except Refusal as refusal:
                    if refusal.reason is Reason.GONE:
                        gone[address] = refusal
                    elif not transient(refusal) and refusal.reason is not Reason.NOT_FOUND:
                        raise to_error(refusal) from None
                    later_ms.append(refusal.retry_after_ms)
                    # A replica that does not know the model is behind: group 0 does know it.
                    self.problems[shard.group] = refusal.message
                except ChecksumMismatch as mismatch:
                    self.problems[shard.group] = mismatch.cause
                if not missing:
                    self.problems.pop(shard.group, None)
                    return
            reachable = [one for one in self._replicas(shard.group) if self._network.reachable(one)]
            if gone and all(one in gone for one in reachable):
                raise to_error(next(iter(gone.values())))
            await asyncio.sleep(backoff.next_s(min(later_ms, default=0)))

    def _replicas(self, group: int) -> list[str]:
        """The leader first: it has the newest version before the others."""
        leader = self._routes.get(group)
        addresses = list(self._cluster.addresses(group))
        if leader is not None and not leader.suspect:
            addresses = [leader.address, *(one for one in addresses if one != leader.address)]
        return addresses

    async def _attempt(
        self, address: str, shard: Shard, missing: set[int], want: Want, target: Flat, got: dict[int, Got]
    ) -> None:
        model = self._model()
        asked = sorted(missing)[:BLOCKS_A_PULL_MAX] if len(missing) < shard.count else []
        left = len(asked) or len(missing)
        request = pb.PullRequest(
            cluster=self._cluster.identity,
            group=shard.group,
            model=model.model,
            generation=model.generation,
            placement_epoch=model.placement_epoch,
            blocks=asked,
            codec=int(self._codec),  # type: ignore[arg-type]
            if_newer_than=want.newer_than,
        )
        if want.version is not None:
            request.version = want.version
        else:
            request.min_version = want.min_version
            request.linearizable = want.consistency.linearizable
            request.bounded_ms = want.consistency.bounded_ms
        frames = self._network.pull(address, request, ATTEMPT_TIMEOUT_S)
        async with contextlib.aclosing(frames):
            while left:
                try:
                    async with asyncio.timeout(SILENCE_S):
                        frame = await anext(frames, None)
                except TimeoutError:
                    raise Refusal(Reason.DEADLINE, f"{address} sent nothing for {SILENCE_S:g} s") from None
                if frame is None:
                    raise Refusal(Reason.NOT_READY, f"{address} ended the pull early")
                fresh = self._take(frame, missing, want, target)
                got[frame.block] = Got(frame.version, frame.age_ms, fresh)
                left -= 1

    def _take(self, frame: BlockFrame, missing: set[int], want: Want, target: Flat) -> bool:
        """True: its weights came."""
        if frame.block not in missing:
            raise ProtocolError(f"a server sent block {frame.block}, which was not asked for")
        if not want.fits(frame.version):
            raise ProtocolError(f"a server sent block {frame.block} at version {frame.version}", f"expected {want}")
        bound_ms = want.consistency.bounded_ms
        if bound_ms and frame.age_ms > bound_ms:
            raise ProtocolError(f"a server sent block {frame.block} {frame.age_ms} ms old", f"the bound is {bound_ms}")
        fresh = frame.status is not BlockStatus.NOT_NEWER
        if fresh:
            copy_block(frame, self._layout, target, self._codec)
        elif want.newer_than is None or frame.version > want.newer_than:
            raise ProtocolError(
                f"a server sent nothing of block {frame.block} at version {frame.version}", f"expected {want}"
            )
        missing.discard(frame.block)
        return fresh
