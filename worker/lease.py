"""The rank of this worker: claimed, kept by renewals, taken back when the lease ended while nobody else took it.

Invariants: the lease epoch and the view of a hello are those of the last claim or of anything newer that a server
said; a rank that somebody else holds is never fought for. Data groups go on without group 0 (RULES I4), so a renewal
that finds no leader is repeated and nothing else happens. Must not know: streams, steps.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from worker.catalogue import Catalogue, Description, RankGrant
from worker.errors import FailedPrecondition, NotFound, ParameterServerError, RankTaken
from worker.retry import Backoff, BackoffOptions

RENEWALS_A_LEASE = 4
"""Renewals are sent at a quarter of the lease, so three may be lost."""
RENEW_MS_MAX = 10_000
BACKOFF = BackoffOptions(first_ms=50, most_ms=1000)


class RankLease:
    """`claim()` first. `changed` is called on the event loop after a new claim or view; `lost` when the rank is
    somebody else's."""

    def __init__(
        self,
        catalogue: Catalogue,
        model: Description,
        rank: int,
        *,
        changed: Callable[[], None],
        lost: Callable[[ParameterServerError], None],
    ) -> None:
        self._catalogue = catalogue
        self._model = model
        self.rank = rank
        self._changed = changed
        self._lost = lost
        self._grant: RankGrant | None = None
        self._view = 0
        self._claiming = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    @property
    def lease_epoch(self) -> int:
        return self._grant.lease_epoch if self._grant is not None else 0

    @property
    def view(self) -> int:
        return self._view

    async def claim(self) -> int:
        """Take the rank; m of RULES S7. Raises RankTaken."""
        async with self._claiming:
            return await self._claim()

    async def reclaim(self, lease_epoch: int) -> None:
        """A server says that the lease of that epoch is gone: take the rank again. Raises RankTaken if somebody else
        did, even under this session: two processes with one session file would take the rank from each other for
        ever."""
        async with self._claiming:
            if self.lease_epoch != lease_epoch:
                return
            holder = (await self._catalogue.again(self._model)).ranks[self.rank]
            if holder.held and holder.lease_epoch > lease_epoch:
                raise RankTaken(
                    f"rank {self.rank} was taken over by session {holder.session}",
                    "by another process with this session file, or by opening the model once more in this one (keep "
                    "one of the two), or by another worker after this one stood still for longer than its lease",
                    holder=f"session {holder.session}",
                )
            await self._claim()
            self._changed()

    async def _claim(self) -> int:
        grant = await self._catalogue.claim_rank(self._model, self.rank)
        self._grant = grant
        self._view = max(self._view, grant.view.number)
        return grant.lowest_version

    def learn_view(self, number: int) -> bool:
        """A server holds this view; True when it is newer than what was known."""
        if number <= self._view:
            return False
        self._view = number
        return True

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def release(self) -> None:
        """Let others have the rank at once."""
        if self._grant is not None:
            await self._catalogue.release_rank(self._model, self.rank, self._grant.lease_epoch)

    async def _keep(self) -> None:
        backoff = Backoff(BACKOFF)
        try:
            while True:
                lease_ms = self._grant.lease_ms if self._grant is not None else 0
                await asyncio.sleep(min(max(lease_ms, 100) / RENEWALS_A_LEASE, RENEW_MS_MAX) / 1000)
                epoch = self.lease_epoch
                try:
                    _, view = await self._catalogue.renew(self._model, rank=self.rank, lease_epoch=epoch)
                except (RankTaken, NotFound):
                    raise
                except FailedPrecondition:
                    # It ended while this process or the cluster stood still; it is ours again if nobody took it.
                    await self.reclaim(epoch)
                except ParameterServerError:
                    await asyncio.sleep(backoff.next_s())
                else:
                    backoff.reset()
                    self.learn_view(view.number)
        except ParameterServerError as error:
            self._lost(error)
