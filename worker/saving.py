"""A whole model at one step, out of a running job (RULES R4).

Invariants: what is returned is version `step` of every block, weights and optimizer alike, whatever training does
meanwhile; the pin is released on every way out, and where that fails its lease ends it. Must not know: files, threads.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from paramserver.wire.layout import FLOAT, Flat, Layout
from paramserver.wire.spec import scalar_names, slot_names
from worker.catalogue import Catalogue, Description, PinGrant
from worker.checkpoint import Checkpoint
from worker.errors import FailedPrecondition, ParameterServerError
from worker.membership import Cluster
from worker.network import Network
from worker.pull import Puller, Want
from worker.replicas import Replicas
from worker.routing import Routes

SAVE_TIMEOUT_S = 600.0
"""Default budget of a save."""
RENEWALS_A_LEASE = 4
RELEASE_TIMEOUT_S = 5.0
"""What letting go of a pin may take at the end; its lease ends it otherwise."""
SMALLEST_LEASE_MS = 100


@dataclass(frozen=True, slots=True)
class Saved:
    """`step`: the version that the file holds; `size`: its bytes."""

    path: str
    step: int
    size: int


Progress: TypeAlias = Callable[[int, int], None]
"""(bytes so far, bytes in all)."""


def no_progress(_done: int, _total: int) -> None:
    """Nobody watches."""


class Saver:
    """Of one client. `state`: what it waits for, in words."""

    def __init__(
        self, *, network: Network, cluster: Cluster, routes: Routes, catalogue: Catalogue, replicas: Replicas | None
    ) -> None:
        self._network = network
        self._cluster = cluster
        self._routes = routes
        self._catalogue = catalogue
        self._replicas = replicas
        self._puller: Puller | None = None
        self.step: int | None = None
        self.model: Description | None = None
        """What is saved."""

    def why(self) -> str:
        if self._puller is None:
            return self._catalogue.problem
        problems = [f"group {group}: {problem}" for group, problem in sorted(self._puller.problems.items())]
        return "; ".join([f"version {self.step} is awaited", *problems])

    async def run(self, name: str, step: int | None, progress: Progress) -> Checkpoint:
        """`progress(bytes so far, bytes in all)` is called on the event loop, first with 0 once the version is pinned.
        Goes on until it is cancelled."""
        model = self.model = await self._catalogue.describe(name)
        if not model.open:
            raise FailedPrecondition(f"model {name!r} has no values yet", "wait until it was initialised")
        async with self._pinned(model, step) as pin:
            self.step = pin.step
            weights, slots, scalars = await self._pull(model, pin, progress)
            # Asked again: a change of the rate may have been settled for a step before this one.
            described = await self._catalogue.again(model)
        return Checkpoint(
            spec=model.spec,
            step=pin.step,
            weights=weights,
            slots=slots,
            scalars=scalars,
            rates=needed_rates(described.rates, pin.step),
            origin=f"cluster {self._cluster.identity.hex()}, model {model.model}, generation {model.generation}",
        )

    async def _pull(
        self, model: Description, pin: PinGrant, progress: Progress
    ) -> tuple[Flat, tuple[Flat, ...], np.ndarray]:
        layout = Layout(model.spec)
        parts = [np.empty(layout.elements, FLOAT) for _ in range(1 + len(slot_names(model.spec.optimizer)))]
        total, done = sum(part.nbytes for part in parts), 0
        progress(done, total)

        def arrived(size: int) -> None:
            nonlocal done
            done += size
            progress(done, total)

        self._puller = Puller(
            network=self._network,
            cluster=self._cluster,
            routes=self._routes,
            model=lambda: model,
            layout=layout,
            replicas=self._replicas,
            arrived=arrived,
            unknown=lambda: self._catalogue.still_there(model),
        )
        numbers = len(scalar_names(model.spec.optimizer))
        scalars = np.empty((layout.blocks, numbers), np.float64)
        for place, part in enumerate(parts):
            got = await self._puller.pull(Want(version=pin.step, part=place), part)
            for block, one in got.items():
                if len(one.scalars) != numbers:
                    raise FailedPrecondition(
                        f"block {block} came without the optimizer's numbers: version {pin.step} is pinned no more",
                        "the pin's lease ended while this process stood still; save again",
                    )
                scalars[block] = one.scalars
        return parts[0], tuple(parts[1:]), scalars

    @contextlib.asynccontextmanager
    async def _pinned(self, model: Description, step: int | None) -> AsyncIterator[PinGrant]:
        pin = await self._catalogue.pin(model, step)
        keeping = asyncio.create_task(self._keep(model, pin))
        try:
            yield pin
        finally:
            keeping.cancel()
            with contextlib.suppress(TimeoutError, ParameterServerError):
                async with asyncio.timeout(RELEASE_TIMEOUT_S):
                    await self._catalogue.release_pin(model, pin.pin)

    async def _keep(self, model: Description, pin: PinGrant) -> None:
        while True:
            await asyncio.sleep(max(pin.lease_ms, SMALLEST_LEASE_MS) / RENEWALS_A_LEASE / 1000)
            with contextlib.suppress(ParameterServerError):
                await self._catalogue.renew(model, pin=pin.pin)


def needed_rates(rates: tuple[tuple[int, float], ...], step: int) -> tuple[tuple[int, float], ...]:
    """Of changes in the order in which they were made: by step, the last one up to `step` and those that lie ahead."""
    latest = sorted(dict(rates).items())
    begun = [one for one in latest if one[0] <= step]
    return (*begun[-1:], *(one for one in latest if one[0] > step))
