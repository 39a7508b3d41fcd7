"""Initial values: sent once, by whoever got the initialization lease (RULES M3).

Invariants: values are made and sent only under a lease epoch of this client; the model is opened only after every
block was stored under it; once a model is open nothing is sent, so a worker that starts again never resets it. Must
not know: ranks, steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from paramserver.wire.errors import Reason, Refusal
from paramserver.wire.frames import Hello, PushKind
from paramserver.wire.layout import Flat, Layout
from worker.arrays import on_host
from worker.catalogue import Catalogue, Description
from worker.errors import FailedPrecondition, InvalidArgument, NotFound, ParameterServerError
from worker.membership import Cluster
from worker.network import Network, PushMethod
from worker.push import GroupPusher
from worker.refusals import to_error
from worker.retry import Backoff, BackoffOptions
from worker.routing import Routes
from worker.steps import GroupStep
from worker.tasks import all_of

Initial: TypeAlias = "Mapping[str, Any] | Callable[[], Mapping[str, Any]]"
"""Named values, or what makes them; called only if this client is the one to send them."""

OTHERS_BACKOFF = BackoffOptions(first_ms=20, most_ms=200)
"""How often to look whether somebody else's initial values are there."""
RENEW_EVERY_S = 2.0


class Initializer:
    """Brings one model from created to open."""

    def __init__(self, *, network: Network, cluster: Cluster, routes: Routes, catalogue: Catalogue) -> None:
        self._network = network
        self._cluster = cluster
        self._routes = routes
        self._catalogue = catalogue
        self.state = ""
        """What it waits for, in words."""

    async def run(self, model: Description, initial: Initial | None) -> Description:
        """The model, open. Goes on until it is cancelled; without `initial` it waits for somebody else."""
        backoff = Backoff(OTHERS_BACKOFF)
        layout = Layout(model.spec)
        while not model.open:
            if initial is not None:
                claim = await self._catalogue.claim_initialization(model)
                if claim.granted:
                    values = _laid_out(initial() if callable(initial) else initial, layout)
                    await self._send_and_open(model, values, layout, claim.epoch)
                    backoff.reset()
                elif not claim.open:
                    self.state = f"model {model.spec.name!r} is being initialized by {claim.holder}"
            else:
                self.state = f"model {model.spec.name!r} has no values yet, and this client was given no `initial`"
            model = await self._described(model)
            if not model.open:
                await asyncio.sleep(backoff.next_s())
        self.state = ""
        return model

    async def _described(self, model: Description) -> Description:
        """By its name, under which a checkpoint may have been loaded meanwhile."""
        found = await self._catalogue.describe(model.spec.name)
        if found.spec != model.spec:
            raise FailedPrecondition(
                f"model {model.spec.name!r} was deleted, and there is another one of that name", "open it again"
            )
        return found

    async def _send_and_open(self, model: Description, values: Flat, layout: Layout, epoch: int) -> None:
        """Done, or the lease was lost on the way: the caller looks."""
        renewing = asyncio.create_task(self._renew(model, epoch))
        sender = Sender(self._cluster, model, epoch, self._catalogue)
        try:
            await sender.send(self._network, self._routes, values, layout)
            await self._catalogue.open(model, epoch)
        except (FailedPrecondition, NotFound) as error:
            self.state = error.cause
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)

    async def _renew(self, model: Description, epoch: int) -> None:
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            await self._catalogue.renew(model, initialization_epoch=epoch)


def _laid_out(values: Mapping[str, Any], layout: Layout) -> Flat:
    """Raises InvalidArgument, which says that it is about initial values."""
    try:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused by the servers
            return layout.flatten(on_host(values, "initial"))
    except Refusal as refusal:
        raise InvalidArgument(f"initial: {refusal.message}", refusal.hint) from None
    except InvalidArgument as error:
        if error.cause.startswith("initial"):
            raise
        raise InvalidArgument(f"initial: {error.cause}", error.hint) from None


class Sender:
    """Sends every block to its group's leader; the owner of the Initialize streams."""

    def __init__(
        self,
        cluster: Cluster,
        model: Description,
        epoch: int,
        catalogue: Catalogue,
        *,
        part: int = 0,
        scalars: npt.NDArray[np.float64] | None = None,
        stored: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Of a checkpoint: `part` of it, with `scalars` (blocks, numbers). `stored` is told of the bytes of each block
        that is."""
        self._catalogue = catalogue
        self._part = part
        self._scalars = scalars
        self._told = stored
        self._pushers: dict[int, GroupPusher] = {}
        self._cluster = cluster
        self._model = model
        self._epoch = epoch
        self._stored: dict[int, asyncio.Future[None]] = {}

    async def send(self, network: Network, routes: Routes, values: Flat, layout: Layout) -> None:
        """Returns when every block is stored. Raises FailedPrecondition when the lease is gone."""
        await all_of(self._group(network, routes, values, layout, shard) for shard in self._model.shards)

    async def _group(self, network: Network, routes: Routes, values: Flat, layout: Layout, shard: Any) -> None:
        pusher = GroupPusher(shard.group, network=network, routes=routes, owner=self, method=PushMethod.INITIALIZE)
        stored = self._stored[shard.group] = asyncio.get_running_loop().create_future()
        self._pushers[shard.group] = pusher
        pusher.submit(
            GroupStep(
                step=0,
                first=shard.first,
                count=shard.count,
                layout=layout,
                kind=PushKind.INITIAL,
                gradient=values,
                weights=None,
                part=self._part,
                scalars=self._scalars,
                acknowledged=lambda block: self._told(4 * layout.block_elements(block)),
            )
        )
        pusher.start()
        try:
            await stored
        finally:
            await pusher.close()

    # --- push.Owner

    def hello(self, group: int) -> Hello:
        return Hello(
            cluster=self._cluster.identity,
            group=group,
            model=self._model.model,
            generation=self._model.generation,
            placement_epoch=self._model.placement_epoch,
            initialization_epoch=self._epoch,
        )

    def group_complete(self, group: int) -> None:
        if not self._stored[group].done():
            self._stored[group].set_result(None)

    async def resolve(self, hello: Hello, refusal: Refusal) -> bool:
        if refusal.reason in (Reason.SUPERSEDED, Reason.STALE_LEASE, Reason.STALE_EPOCH, Reason.ALREADY_OPEN):
            raise FailedPrecondition(f"the initialization lease is gone: {refusal.message}")
        if refusal.reason is Reason.NOT_FOUND:
            if refusal.field != "hello.model":
                raise to_error(refusal)
            await self._catalogue.still_there(self._model)
        return False

    @property
    def problems(self) -> list[str]:
        """Why groups do not take it; empty where none is in trouble."""
        return [f"group {group}: {one.problem}" for group, one in sorted(self._pushers.items()) if one.problem]

    def failed(self, group: int, error: ParameterServerError) -> None:
        if not self._stored[group].done():
            self._stored[group].set_exception(error)
