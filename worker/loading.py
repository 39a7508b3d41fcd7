"""A checkpoint into a cluster: under a name that is free, or over the model that has it (RULES M1).

Owns the way of one load. All values go into a model of their own, which has no name; it takes the name when all of it
is there, and the generation that had it goes in the same command. Invariants: until then whoever opens the name gets
the generation before; a load that is given up, or whose process dies, leaves nothing behind but that, at the latest
when its lease has ended. Must not know: files, threads.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from paramserver.wire.layout import Flat, Layout
from worker.catalogue import Catalogue, Description, LoadGrant
from worker.checkpoint import Checkpoint
from worker.errors import FailedPrecondition, NotFound, ParameterServerError
from worker.initialize import Sender
from worker.membership import Cluster
from worker.network import Network
from worker.routing import Routes
from worker.saving import Progress

LOAD_TIMEOUT_S = 600.0
"""Default budget of a load."""
RENEWALS_A_LEASE = 4
GIVE_UP_TIMEOUT_S = 5.0
"""What taking back what was sent may take; the lease ends it otherwise."""
SMALLEST_LEASE_MS = 100


@dataclass(frozen=True, slots=True)
class Loaded:
    """`model`: its id now; `step`: where training goes on; `size`: bytes of the file."""

    name: str
    model: int
    generation: int
    step: int
    size: int


class Loader:
    """Of one client."""

    def __init__(self, *, network: Network, cluster: Cluster, routes: Routes, catalogue: Catalogue) -> None:
        self._network = network
        self._cluster = cluster
        self._routes = routes
        self._catalogue = catalogue
        self._sender: Sender | None = None

    def why(self) -> str:
        problems = self._sender.problems if self._sender is not None else []
        return "; ".join([*([self._catalogue.problem] if self._catalogue.problem else []), *problems])

    async def run(self, checkpoint: Checkpoint, name: str, progress: Progress) -> Description:
        """The model as it stands then. `progress(bytes so far, bytes in all)` is called on the event loop. Goes on
        until it is cancelled. Raises SpecMismatch, FailedPrecondition (another load under way; the lease ended)."""
        spec = replace(checkpoint.spec, name=name)
        grant = await self._catalogue.load(spec, checkpoint.step, checkpoint.rates)
        async with self._given_up_unless_done(grant):
            sending = asyncio.create_task(self._send_and_open(grant, checkpoint, Layout(spec), progress))
            renewing = asyncio.create_task(self._renew(grant))
            both: list[asyncio.Task[Description]] = [sending, renewing]
            try:
                done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                return (sending if sending in done else renewing).result()
            finally:
                for task in both:
                    task.cancel()
                await asyncio.gather(*both, return_exceptions=True)

    async def _send_and_open(
        self, grant: LoadGrant, checkpoint: Checkpoint, layout: Layout, progress: Progress
    ) -> Description:
        parts: tuple[Flat, ...] = (checkpoint.weights, *checkpoint.slots)
        total, done = sum(part.nbytes for part in parts), 0
        progress(done, total)

        def stored(blocks: int) -> None:
            nonlocal done
            done = min(done + blocks, total)
            progress(done, total)

        for place, part in enumerate(parts):
            scalars: npt.NDArray[np.float64] | None = checkpoint.scalars if place == 0 else None
            self._sender = Sender(
                self._cluster, grant.model, grant.epoch, self._catalogue, part=place, scalars=scalars, stored=stored
            )
            await self._sender.send(self._network, self._routes, part, layout)
        return await self._catalogue.open(grant.model, grant.epoch)

    async def _renew(self, grant: LoadGrant) -> Description:
        """Until the lease is gone, and with it all that was sent; or until the model is open."""
        while True:
            await asyncio.sleep(max(grant.lease_ms, SMALLEST_LEASE_MS) / RENEWALS_A_LEASE / 1000)
            try:
                await self._catalogue.renew(grant.model, initialization_epoch=grant.epoch)
            except (FailedPrecondition, NotFound) as error:
                with contextlib.suppress(NotFound):
                    described = await self._catalogue.describe(model=grant.model.model)
                    if described.open:
                        return described  # with that the lease ended as well
                raise FailedPrecondition(
                    f"the lease of this load ended: {error.cause}",
                    "this process stood still, or was cut off, for longer than a lease; load it again",
                ) from None
            except ParameterServerError:
                continue

    @contextlib.asynccontextmanager
    async def _given_up_unless_done(self, grant: LoadGrant) -> AsyncIterator[None]:
        try:
            yield
        except BaseException:
            with contextlib.suppress(TimeoutError, ParameterServerError):
                async with asyncio.timeout(GIVE_UP_TIMEOUT_S):
                    await self._catalogue.give_up(grant.model)
            raise
