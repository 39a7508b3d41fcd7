"""Blocks of a model at a version, from any replica that has them (RULES R1).

A pull is cut into pieces of some blocks, and each piece asks one replica after the other, as `replicas` chooses, until
it is whole; pieces are on their way side by side, so that all replicas that can serve do. Invariants: a pull of a
version gives exactly that version of every block; what one replica sent is kept when it breaks off, and only the rest
is asked for elsewhere; a replica that is behind, slow, gone or without the version costs a retry elsewhere and no
more; a version is Gone only when a replica said so and none of the others has it. Must not know: steps.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from paramserver.v1 import paramserver_pb2 as pb
from paramserver.wire.codecs import Codec, Values
from paramserver.wire.errors import Reason, Refusal
from paramserver.wire.frames import BlockFrame, BlockStatus
from paramserver.wire.layout import Layout
from worker.catalogue import Description, Shard
from worker.consistency import ANY, Consistency
from worker.errors import ProtocolError
from worker.membership import Cluster
from worker.network import Network
from worker.refusals import to_error, transient
from worker.replicas import Replicas
from worker.retry import Backoff, BackoffOptions
from worker.routing import Routes
from worker.steps import ChecksumMismatch, copy_block
from worker.tasks import all_of

ATTEMPT_TIMEOUT_S = 5.0
"""One Pull at one replica; it may be waiting there for a version that is on its way."""
SILENCE_S = 1.0
"""A replica that sends nothing for so long is left for the next one; sooner, as `replicas` says, while there are others
that were not asked yet."""
PIECE_BYTES = 8 << 20
"""Of fp32. Large enough that a call for it costs little beside it, small enough that replicas share a model."""
PIECE_BLOCKS_MAX = 1024
"""Servers refuse pulls that name more than 16,384."""
PIECES_A_REPLICA = 2
"""On their way from a replica at a time, of one pull and group: one is sent while the other is asked for."""
PIECES_MAX = 64
"""On their way at a time, of one pull; but one of each group always is."""
BACKOFF = BackoffOptions(first_ms=5, most_ms=100)


@dataclass(frozen=True, slots=True)
class Want:
    """Exactly `version`, or at least `min_version`, as new as `consistency` says. `newer_than`: weights only of blocks
    above that version; not with `version`."""

    version: int | None = None
    min_version: int = 0
    consistency: Consistency = ANY
    newer_than: int | None = None
    part: int = 0
    """With a version that is pinned: n for the optimizer's n-th array in place of the weights."""

    def fits(self, version: int) -> bool:
        return version == self.version if self.version is not None else version >= self.min_version


class Got(NamedTuple):
    """A block as it came. `age_ms`: of a consistent pull, how old it was at most when its replica read it. Not `fresh`:
    it is no newer than what was asked for, and its weights were not sent."""

    version: int
    age_ms: int = 0
    fresh: bool = True
    scalars: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class _Order:
    """What one pull wants, and where it puts what comes."""

    want: Want
    target: Values
    got: dict[int, Got]


class Puller:
    """Pulls of one model. `replicas`: of all pulls of the client."""

    def __init__(
        self,
        *,
        network: Network,
        cluster: Cluster,
        routes: Routes,
        model: Callable[[], Description],
        layout: Layout,
        codec: Codec = Codec.FP32,
        replicas: Replicas | None = None,
        arrived: Callable[[int], None] = lambda _: None,
        unknown: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`codec`: in which weights are to come. `arrived` is told of the bytes of each block, as fp32. `unknown` is
        asked when a replica does not know the model: it raises what the pull ends with, unless there is one."""
        self._unknown = unknown
        self._network = network
        self._cluster = cluster
        self._routes = routes
        self._model = model
        self._layout = layout
        self._codec = codec
        self._arrived = arrived
        self._replicas = replicas or Replicas(now_s=lambda: asyncio.get_running_loop().time())
        self.problems: dict[int, str] = {}
        """Group -> why the last attempt failed, while one is in trouble."""

    async def pull(self, want: Want, target: Values, blocks: Iterable[int] | None = None) -> dict[int, Got]:
        """Fill `target` (elements,) with all blocks, or with `blocks`; what came, by block. Goes on until it is
        cancelled."""
        wanted = None if blocks is None else set(blocks)
        order = _Order(want, target, {})
        shards = []
        for shard in self._model().shards:
            missing = [one for one in range(shard.first, shard.first + shard.count) if wanted is None or one in wanted]
            if missing:
                shards.append((shard, missing))
        at_once_max = max(1, PIECES_MAX // max(1, len(shards)))
        await all_of(self._group(shard, missing, order, at_once_max) for shard, missing in shards)
        return order.got

    async def _group(self, shard: Shard, missing: list[int], order: _Order, at_once_max: int) -> None:
        size = max(1, min(PIECE_BLOCKS_MAX, PIECE_BYTES // self._layout.block_bytes(0)))
        pieces = deque(set(missing[start : start + size]) for start in range(0, len(missing), size))
        at_once = min(len(pieces), at_once_max, PIECES_A_REPLICA * len(self._cluster.addresses(shard.group)))

        async def lane() -> None:
            while pieces:
                await self._piece(shard, pieces.popleft(), order)

        await all_of(lane() for _ in range(max(1, at_once)))
        self.problems.pop(shard.group, None)

    async def _piece(self, shard: Shard, missing: set[int], order: _Order) -> None:
        """Until all of it is there."""
        backoff = Backoff(BACKOFF, budget=self._routes.retries)
        gone: dict[str, Refusal] = {}
        asked: set[str] = set()
        # Of those that are at a bound the one that is free first says when; others are asked before.
        later_ms: list[int] = []
        first_round = True
        while missing:
            waiting = self._candidates(shard.group, asked)
            if not waiting:
                reachable = [one for one in self._cluster.addresses(shard.group) if self._network.reachable(one)]
                if gone and all(one in gone for one in reachable):
                    raise to_error(next(iter(gone.values())))
                await asyncio.sleep(backoff.next_s(min(later_ms, default=0)))
                asked.clear()
                later_ms.clear()
                first_round = False
                continue
            route = self._routes.get(shard.group)
            leader = route.address if route is not None and not route.suspect else ""
            address = self._replicas.choose(waiting, leader=leader)
            if pause_s := self._replicas.pause_s(address):
                await asyncio.sleep(backoff.next_s(pause_s * 1000))  # nobody else is left
            asked.add(address)
            hurry = first_round and len(waiting) > 1
            silence_s = self._replicas.silence_s if hurry else max(SILENCE_S, self._replicas.silence_s)
            try:
                await self._attempt(address, shard, missing, order, silence_s)
            except _Silent as silent:
                self._replicas.silent(address)
                self.problems[shard.group] = str(silent)
            except Refusal as refusal:
                later_ms.append(refusal.retry_after_ms)
                if refusal.reason is Reason.GONE:
                    gone[address] = refusal
                    continue  # it is well, and past that version
                if not transient(refusal) and refusal.reason not in _ELSEWHERE:
                    raise to_error(refusal) from None
                if refusal.reason is Reason.NOT_FOUND and self._unknown is not None:
                    await self._unknown()
                self._replicas.failed(address, refusal.retry_after_ms / 1000)
                self.problems[shard.group] = refusal.message
            except ChecksumMismatch as mismatch:
                self._replicas.failed(address)
                self.problems[shard.group] = mismatch.cause
            else:
                self._replicas.worked(address)
                return
            # Elsewhere at once, unless the client asks again too often as it is: servers then have enough to do.
            if wait_s := self._routes.retries.wait_s():
                await asyncio.sleep(wait_s)

    def _candidates(self, group: int, asked: set[str]) -> list[str]:
        """Replicas that were not asked in this round; those without a connection only where there are no others: a
        connection is made as soon as they are back."""
        members = self._cluster.addresses(group)
        reachable = [one for one in members if self._network.reachable(one)]
        return [one for one in reachable or members if one not in asked]

    async def _attempt(self, address: str, shard: Shard, missing: set[int], order: _Order, silence_s: float) -> None:
        want = order.want
        frames = self._network.pull(address, self._request(shard, missing, want), ATTEMPT_TIMEOUT_S)
        outstanding = sum(map(self._layout.block_bytes, missing))
        self._replicas.asked(address, outstanding)
        try:
            async with contextlib.aclosing(frames):
                while missing:
                    try:
                        async with asyncio.timeout(silence_s):
                            frame = await anext(frames, None)
                    except TimeoutError:
                        raise _Silent(f"{address} sent nothing for {silence_s:.2g} s") from None
                    if frame is None:
                        raise Refusal(Reason.NOT_READY, f"{address} ended the pull early")
                    fresh = self._take(frame, missing, want, order.target)
                    order.got[frame.block] = Got(frame.version, frame.age_ms, fresh, frame.scalars)
                    arrived = self._layout.block_bytes(frame.block)
                    outstanding -= arrived
                    self._replicas.arrived(address, arrived)
                    self._arrived(arrived)
        finally:
            self._replicas.arrived(address, outstanding)

    def _request(self, shard: Shard, missing: set[int], want: Want) -> pb.PullRequest:
        model = self._model()
        request = pb.PullRequest(
            cluster=self._cluster.identity,
            group=shard.group,
            model=model.model,
            generation=model.generation,
            placement_epoch=model.placement_epoch,
            blocks=sorted(missing) if len(missing) < shard.count else (),
            codec=int(self._codec),  # type: ignore[arg-type]
            if_newer_than=want.newer_than,
            part=want.part,
        )
        if want.version is not None:
            request.version = want.version
        else:
            request.min_version = want.min_version
            request.linearizable = want.consistency.linearizable
            request.bounded_ms = want.consistency.bounded_ms
        return request

    def _take(self, frame: BlockFrame, missing: set[int], want: Want, target: Values) -> bool:
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


class _Silent(Exception):
    """A replica sent nothing for as long as it is waited for."""


_ELSEWHERE = frozenset({Reason.NOT_FOUND})
"""Final where group 0 says it; a replica that does not know the model is behind."""
