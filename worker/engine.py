"""The life of one model in one worker: its rank, its streams, the step in flight.

Invariants (RULES S6, S8): at most one step is in flight, and it is over when version step + 1 of *every* block was
seen; a step that was begun is finished with the bytes it was begun with, through any number of leaders, views and
leases; when nobody waits for it any more it rests, and `wait` takes it up again. Everything here runs on the client's
event loop. Must not know: threads, dictionaries of tensors beyond their flat buffer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import TypeVar

from paramserver.wire.codecs import Codec, Values
from paramserver.wire.errors import Reason, Refusal
from paramserver.wire.frames import Hello, PushKind
from paramserver.wire.layout import Layout
from worker.catalogue import Catalogue, Description
from worker.consistency import ANY, Consistency
from worker.errors import FailedPrecondition, Gone, OutcomeUnknown, ParameterServerError
from worker.lease import RankLease
from worker.membership import Cluster, Watchers
from worker.network import Network
from worker.pull import Got, Puller, Want
from worker.push import GroupPusher
from worker.refusals import to_error
from worker.replicas import Replicas
from worker.retry import Budget
from worker.routing import Routes
from worker.steps import GroupStep, ranges
from worker.tasks import all_of
from worker.tensors import Tensors

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Flight:
    """A step on its way. `tensors`: where the weights after it go, None if nobody wants them. `done`: it is over;
    `pending` are the groups that have not acknowledged all. `ready`: the blocks that may be sent, where they come one
    by one."""

    step: int
    tensors: Tensors | None
    parts: dict[int, GroupStep]
    done: asyncio.Future[None]
    pending: set[int] = field(default_factory=set)
    ready: set[int] | None = None
    waiters: int = 0

    @property
    def unacknowledged(self) -> tuple[int, ...]:
        return tuple(block for part in self.parts.values() for block in part.unacknowledged)

    @property
    def duplicates(self) -> int:
        return sum(part.duplicates for part in self.parts.values())


class Engine:
    """Of one model handle. `codec`: in which gradients travel; `weights_codec`: in which weights do, however they come,
    so that a step is computed with the same bits again (RULES S7)."""

    def __init__(
        self,
        *,
        network: Network,
        cluster: Cluster,
        routes: Routes,
        watchers: Watchers,
        catalogue: Catalogue,
        model: Description,
        codec: Codec = Codec.FP32,
        weights_codec: Codec = Codec.FP32,
        replicas: Replicas | None = None,
    ) -> None:
        self._network = network
        self._cluster = cluster
        self._routes = routes
        self._watchers = watchers
        self._catalogue = catalogue
        self.model = model
        self.codec = codec
        self.weights_codec = weights_codec
        self.layout = Layout(model.spec)
        self.step = 0
        """The next step to compute: every block is at this version, as far as this rank has seen."""
        self._seen = 0
        self._lease: RankLease | None = None
        self._pushers: dict[int, GroupPusher] = {}
        self._puller = Puller(
            network=network,
            cluster=cluster,
            routes=routes,
            model=lambda: self.model,
            layout=self.layout,
            codec=weights_codec,
            replicas=replicas,
            unknown=lambda: catalogue.still_there(self.model),
        )
        self._flight: Flight | None = None
        self._failure: ParameterServerError | None = None
        self._finishing: dict[asyncio.Task[None], None] = {}

    # --- rank

    async def claim(self, rank: int) -> None:
        """Take the rank, learn m, open the streams. Raises RankTaken."""
        lease = RankLease(self._catalogue, self.model, rank, changed=self._lease_changed, lost=self._fail)
        self.step = self._seen = await lease.claim()
        self._lease = lease
        lease.start()
        for shard in self.model.shards:
            pusher = GroupPusher(shard.group, network=self._network, routes=self._routes, owner=self)
            self._pushers[shard.group] = pusher
            pusher.start()

    @property
    def rank(self) -> int | None:
        return self._lease.rank if self._lease is not None else None

    def _lease_changed(self) -> None:
        for pusher in self._pushers.values():
            pusher.reopen()

    # --- pushing

    @property
    def in_flight(self) -> bool:
        return self._flight is not None and not self._flight.done.done()

    def begin(
        self,
        step: int,
        kind: PushKind,
        gradient: Values | None,
        tensors: Tensors | None,
        empty: Collection[int] = (),
        ready: set[int] | None = None,
    ) -> Flight:
        """Put a step in flight. `gradient`, encoded in this handle's codec or not at all, must not change until its
        flight is done; `empty`: blocks it says nothing of. `tensors` None: no weights are wanted back. `ready`: the
        blocks whose gradient is there, others come with `hand_over`, until when they may be added to `empty`; None: all
        are."""
        self.check()
        if self._lease is None:
            raise FailedPrecondition("this handle holds no rank", "open the model with rank=...")
        if self._flight is not None and self.in_flight:
            raise FailedPrecondition(f"step {self._flight.step} is still in flight", "wait for it first")
        if step != self.step:
            raise FailedPrecondition(f"step {step} cannot be pushed", f"the next step is {self.step}")
        parts = {
            shard.group: GroupStep(
                step=step,
                first=shard.first,
                count=shard.count,
                layout=self.layout,
                kind=kind,
                gradient=gradient,
                weights=None if tensors is None else tensors.flat,
                codec=self.codec,
                weights_codec=self.weights_codec,
                empty=empty,
                ready=ready,
            )
            for shard in self.model.shards
        }
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        flight = Flight(step, tensors, parts, done, pending=set(parts), ready=ready)
        self._flight = flight
        for group, part in parts.items():
            self._pushers[group].submit(part)
            if ready is not None:
                self._pushers[group].resume()  # it is sent before anybody waits for it
        return flight

    def hand_over(self, blocks: Collection[int]) -> None:
        """The gradient of these blocks is there, too: of the step in flight, which was begun with `ready`."""
        flight = self._flight
        if flight is not None and flight.ready is not None:
            flight.ready.update(blocks)
            for pusher in self._pushers.values():
                pusher.nudge()

    async def wait(self, budget: Budget) -> Flight:
        """The step in flight, or the last one, when it is over. When the budget ends first the step rests."""
        flight = self._flight
        if flight is None:
            raise FailedPrecondition("no step was pushed", "push_pull() first")
        flight.waiters += 1
        for pusher in self._pushers.values():
            pusher.resume()
        try:
            done, _ = await asyncio.wait([flight.done], timeout=budget.remaining_s)
        finally:
            flight.waiters -= 1
            if not flight.waiters and not flight.done.done():
                for pusher in self._pushers.values():
                    pusher.pause()
        if not done:
            raise budget.exceeded(self.why())
        flight.done.result()
        return flight

    # --- push.Owner

    def hello(self, group: int) -> Hello:
        lease = self._held()
        return Hello(
            cluster=self._cluster.identity,
            group=group,
            model=self.model.model,
            generation=self.model.generation,
            placement_epoch=self.model.placement_epoch,
            view=lease.view,
            rank=lease.rank,
            lease_epoch=lease.lease_epoch,
            # Each frame says whether it wants them; this has the servers encode them beforehand.
            want_weights=self.weights_codec is not Codec.FP32,
            weights_codec=self.weights_codec,
        )

    def group_complete(self, group: int) -> None:
        flight = self._flight
        if flight is None:
            return
        flight.pending.discard(group)
        if flight.pending or flight.done.done():
            return
        missing = [block for part in flight.parts.values() for block in part.without_weights]
        if missing:
            task = asyncio.create_task(self._fetch(flight, missing))
            self._finishing[task] = None
            task.add_done_callback(lambda done: self._finishing.pop(done, None))
        else:
            self._finish(flight)

    async def resolve(self, hello: Hello, refusal: Refusal) -> bool:
        lease = self._held()
        match refusal.reason:
            case Reason.VIEW_CHANGED:
                lease.learn_view(refusal.view)
                # Another group may have told of this view first.
                return lease.view > hello.view
            case Reason.STALE_LEASE | Reason.RANK_TAKEN:
                await lease.reclaim(hello.lease_epoch)
                return lease.lease_epoch > hello.lease_epoch
            case Reason.STALE_EPOCH:
                return await self._describe_again()
            case Reason.NOT_FOUND if refusal.field != "hello.model":
                raise to_error(refusal)
            case Reason.NOT_FOUND:
                await self._catalogue.still_there(self.model)
        return False

    def failed(self, group: int, error: ParameterServerError) -> None:
        self._fail(error)

    # --- the end of a step

    async def _fetch(self, flight: Flight, missing: list[int]) -> None:
        """Weights that did not come with their acknowledgement."""
        tensors = flight.tensors
        if tensors is None:
            return
        try:
            await self._puller.pull(Want(version=flight.step + 1), tensors.flat, missing)
        except ParameterServerError as error:
            self._fail(error)
        else:
            self._finish(flight)

    def _finish(self, flight: Flight) -> None:
        self.step = self._seen = flight.step + 1
        if flight.tensors is not None:
            _mark(flight.tensors, dict.fromkeys(range(self.layout.blocks), Got(self.step)))
        if not flight.done.done():
            flight.done.set_result(None)

    # --- pulling

    async def pull(
        self,
        tensors: Tensors,
        *,
        version: int | None = None,
        min_version: int | None = None,
        consistency: Consistency = ANY,
        if_newer_than: int | None = None,
        blocks: Collection[int] | None = None,
    ) -> Tensors | None:
        """Of all blocks, or of `blocks`: exactly `version`; or at least `min_version` and as new as `consistency` says,
        where blocks may differ by one; or, with none of these, one version of all: this rank's own step, or for a
        handle without a rank the newest there is. None, and nothing was written, when no block is above
        `if_newer_than`."""
        self.check()
        if consistency is not ANY:
            min_version = min_version or 0
        if version is None and min_version is None:
            if self._lease is None:
                return await self._pull_newest(tensors, if_newer_than, blocks)
            if if_newer_than is not None and self.step <= if_newer_than:
                return None
            version = self.step
        if version is not None:
            return _mark(tensors, await self._puller.pull(Want(version), tensors.flat, blocks))
        want = Want(None, min_version or 0, consistency, if_newer_than)
        got = await self._puller.pull(want, tensors.flat, blocks)
        stale = [block for block, one in got.items() if not one.fresh]
        if len(stale) == len(got):
            return None
        if stale:
            got |= await self._puller.pull(replace(want, newer_than=None), tensors.flat, stale)
        return _mark(tensors, got)

    async def _pull_newest(
        self, tensors: Tensors, newer_than: int | None, blocks: Collection[int] | None
    ) -> Tensors | None:
        """Blocks are in {m, m + 1}: pull what is there, then wait for those that are one behind."""
        while True:
            got = await self._puller.pull(Want(None, self._seen, newer_than=newer_than), tensors.flat, blocks)
            if not any(one.fresh for one in got.values()):
                return None
            newest = max(got.values()).version
            behind = [block for block, one in got.items() if one.version < newest]
            self._seen = max(self._seen, min(got.values()).version)
            try:
                if behind:
                    got |= await self._puller.pull(Want(newest), tensors.flat, behind)
            except Gone:
                continue  # training went on under way
            self._seen = newest
            return _mark(tensors, got)

    # --- the learning rate

    @property
    def catalogue_problem(self) -> str:
        return self._catalogue.problem

    async def set_learning_rate(self, learning_rate: float, from_step: int | None) -> int:
        return await self._catalogue.set_learning_rate(self.model, learning_rate, from_step)

    # --- why it waits

    def why(self) -> str:
        """One line: what the step in flight, or a pull, is waiting for; empty when nothing is known to be wrong."""
        parts = []
        flight = self._flight
        if flight is not None and not flight.done.done():
            parts = self._why_pushing(flight)
        else:
            parts = [f"group {group}: {problem}" for group, problem in sorted(self._puller.problems.items())]
        unreachable = self._watchers.unreachable()
        if unreachable:
            nodes = ", ".join(map(str, unreachable))
            parts.append(f"node{'s' if len(unreachable) > 1 else ''} {nodes} unreachable")
        return "; ".join(parts)

    def _why_pushing(self, flight: Flight) -> list[str]:
        parts: list[str] = []
        leaderless: list[int] = []
        waiting: list[int] = []
        for group in sorted(flight.pending):
            route, pusher = self._routes.get(group), self._pushers[group]
            if pusher.answering is not None:
                waiting += flight.parts[group].unacknowledged
            elif route is None or (route.suspect and not pusher.full):
                leaderless.append(group)
            else:
                parts.append(f"group {group}: {pusher.problem or 'no answer yet'}")
        if leaderless:
            several = len(leaderless) > 1
            groups = ", ".join(map(str, leaderless))
            parts.append(f"group{'s' if several else ''} {groups} {'have' if several else 'has'} no leader")
        if waiting:
            parts.append(f"step {flight.step} is not complete in block{'s' * (len(waiting) > 1)} {ranges(waiting)}")
            if self.model.spec.ranks > 1:
                parts.append("other ranks may not have pushed it (absent_ranks() says which nobody holds)")
        return parts

    async def absent_ranks(self) -> list[int]:
        """Ranks that nobody holds: the step waits for them (RULES S9)."""
        described = await self._catalogue.again(self.model)
        return [one.rank for one in described.ranks if not one.held]

    # --- the end

    async def close(self, release: bool) -> None:
        """`release`: let others have the rank at once."""
        flight = self._flight
        if flight is not None:
            self._fail_flight(
                OutcomeUnknown(
                    f"step {flight.step} was given up: the model was closed while it was in flight",
                    "open the model again: its `step` says whether it was applied, and computing that one is right",
                    step=flight.step,
                    blocks=flight.unacknowledged,
                )
            )
        await all_of(pusher.close() for pusher in self._pushers.values())
        for task in self._finishing:
            task.cancel()
        if self._lease is not None:
            await self._lease.close()
            if release:
                await self._lease.release()

    def check(self) -> None:
        """Raises what ended this handle."""
        if self._failure is not None:
            raise self._failure

    def _fail(self, error: ParameterServerError) -> None:
        self._failure = self._failure or error
        self._fail_flight(self._failure)

    def _fail_flight(self, error: ParameterServerError) -> None:
        flight = self._flight
        if flight is not None and not flight.done.done():
            flight.done.set_exception(error)
            flight.done.exception()  # looked at: nobody may be waiting

    def _held(self) -> RankLease:
        if self._lease is None:
            raise FailedPrecondition("this handle holds no rank", "open the model with rank=...")
        return self._lease

    async def _describe_again(self) -> bool:
        """A placement epoch was refused. True when group 0 knows another one."""
        described = await self._catalogue.again(self.model)
        if described.shards != self.model.shards or described.generation != self.model.generation:
            raise FailedPrecondition("the model's blocks were placed anew", "open the model again")
        changed = described.placement_epoch != self.model.placement_epoch
        self.model = described
        return changed


def _mark(tensors: Tensors, got: dict[int, Got]) -> Tensors:
    tensors.versions = tuple(got[block].version for block in sorted(got))
    tensors.version = min(tensors.versions)
    tensors.age_ms = max(one.age_ms for one in got.values())
    return tensors
