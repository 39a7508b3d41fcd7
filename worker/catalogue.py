"""Calls to group 0: sessions, models, initialization leases, ranks.

Invariants: commands of this client go out one after the other under rising sequence numbers, and an attempt that is
repeated carries the number of the first, so group 0 does it once (RULES A4); a call follows group 0's leader wherever
it goes and ends only with an answer, a final refusal, or when its caller cancels it (the budget is the caller's). Must
not know: blocks, streams.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, TypeVar

from paramserver.v1 import paramserver_pb2 as pb
from paramserver.wire.errors import Reason, Refusal
from paramserver.wire.protos import View, spec_from_proto, spec_to_proto, view_from_proto
from paramserver.wire.spec import ModelSpec
from worker.errors import FailedPrecondition, NotFound, ParameterServerError
from worker.membership import Cluster
from worker.network import Method, Network
from worker.refusals import to_error, transient
from worker.retry import Backoff, BackoffOptions
from worker.routing import Route, Routes
from worker.session import Session

GROUP = 0
ATTEMPT_TIMEOUT_S = 5.0
"""Of one attempt at one server; claims and opens wait there until every data group has followed."""
BACKOFF = BackoffOptions(first_ms=10, most_ms=250)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shard:
    """Blocks `first` to `first + count - 1` are in `group`."""

    group: int
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class RankHolder:
    rank: int
    lease_epoch: int
    held: bool
    session: int


@dataclass(frozen=True, slots=True)
class Description:
    """A model as group 0 knows it."""

    model: int
    generation: int
    spec: ModelSpec
    shards: tuple[Shard, ...]
    placement_epoch: int
    view: View
    open: bool
    ranks: tuple[RankHolder, ...]
    rates: tuple[tuple[int, float], ...] = ()
    """(step, learning rate) of the latest changes that are final, in the order in which they were made."""


@dataclass(frozen=True, slots=True)
class InitClaim:
    """Granted: send values under `epoch`. Otherwise the model is open, or `holder` is at it for `lease_ends_ms`."""

    granted: bool
    epoch: int
    open: bool
    holder: str
    lease_ends_ms: int


@dataclass(frozen=True, slots=True)
class RankGrant:
    lease_epoch: int
    view: View
    lowest_version: int
    lease_ms: int


@dataclass(frozen=True, slots=True)
class PinGrant:
    """Version `step` of every block is kept, for a lease at a time."""

    pin: int
    step: int
    lease_ms: int


@dataclass(frozen=True, slots=True)
class LoadGrant:
    """A model without a name that awaits its values, under `epoch`, for a lease at a time."""

    model: Description
    epoch: int
    lease_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSummary:
    """One of the cluster's models. `model`: its id, never reused; `ranks_held`: how many of its ranks have a worker."""

    name: str
    model: int
    generation: int
    parameters: int
    open: bool
    ranks: int
    ranks_held: int
    optimizer: str


class Catalogue:
    """Group 0 for one client."""

    def __init__(self, network: Network, cluster: Cluster, routes: Routes, session: Session, name: str) -> None:
        self._network = network
        self._cluster = cluster
        self._routes = routes
        self._session = session
        self._name = name
        self._sequence = session.first_sequence
        self._session_id = 0
        self._turn = asyncio.Lock()
        self._opening = asyncio.Lock()
        self._spec: tuple[bytes, ModelSpec] | None = None
        """The one that was described last, and its bytes."""
        self.problem = ""
        """Why the last attempt of the call in progress failed; empty when none is in trouble."""

    # --- calls

    async def still_there(self, model: Description) -> None:
        """A server does not know a model that was opened: it may be behind. Raises what `gone` gives if it is not."""
        await self.again(model)

    async def again(self, model: Description) -> Description:
        """As it is now. Raises what `gone` gives."""
        return await self._of(model, self.describe(model=model.model))

    async def gone(self, model: Description) -> ParameterServerError:
        """Why there is no model of that id any more."""
        name = model.spec.name
        try:
            now = await self.describe(name)
        except NotFound:
            return NotFound(f"model {name!r} was deleted", "to go on, create it again, or load a checkpoint")
        if now.generation > model.generation:
            cause = f"model {name!r} is of generation {now.generation}, not {model.generation}"
            return FailedPrecondition(cause, "it was loaded from a checkpoint meanwhile: open it again")
        return NotFound(f"model {name!r} was deleted, and there is another one of that name", "open it again")

    async def _of(self, model: Description, call: Awaitable[T]) -> T:
        try:
            return await call
        except NotFound:
            raise await self.gone(model) from None

    async def describe(self, name: str = "", model: int = 0) -> Description:
        found = await self._call(Method.DESCRIBE_MODEL, pb.DescribeModelRequest(name=name, model=model))
        return self._description(found)

    async def create(self, spec: ModelSpec) -> Description:
        request = pb.CreateModelRequest(spec=spec_to_proto(spec))
        return self._description(await self._command(Method.CREATE_MODEL, request))

    def _description(self, message: Any) -> Description:
        """A spec of thousands of tensors takes long to read, and is the same each time."""
        raw = message.spec.SerializeToString(deterministic=True)
        if self._spec is None or self._spec[0] != raw:
            self._spec = (raw, spec_from_proto(message.spec))
        return Description(
            model=message.model,
            generation=message.generation,
            spec=self._spec[1],
            shards=tuple(Shard(one.group, one.first_block, one.blocks) for one in message.shards if one.blocks),
            placement_epoch=message.placement_epoch,
            view=view_from_proto(message.view),
            open=message.open,
            ranks=tuple(RankHolder(one.rank, one.lease_epoch, one.held, one.session) for one in message.ranks),
            rates=tuple((one.step, one.learning_rate) for one in message.rates if one.stage > 1),
        )

    async def claim_initialization(self, model: Description) -> InitClaim:
        request = pb.ClaimInitializationRequest(model=model.model, generation=model.generation)
        answer = await self._of(model, self._command(Method.CLAIM_INITIALIZATION, request))
        return InitClaim(answer.granted, answer.epoch, answer.open, answer.holder, answer.lease_ends_ms)

    async def open(self, model: Description, epoch: int) -> Description:
        request = pb.OpenModelRequest(model=model.model, generation=model.generation, epoch=epoch)
        # Not open: a block has no value of this epoch, and only sending it helps.
        opening = self._command(Method.OPEN_MODEL, request, frozenset({Reason.NOT_OPEN}))
        return self._description(await self._of(model, opening))

    async def claim_rank(self, model: Description, rank: int) -> RankGrant:
        request = pb.ClaimRankRequest(model=model.model, generation=model.generation, rank=rank)
        answer = await self._of(model, self._command(Method.CLAIM_RANK, request))
        return RankGrant(answer.lease_epoch, view_from_proto(answer.view), answer.lowest_version, answer.lease_ms)

    async def release_rank(self, model: Description, rank: int, lease_epoch: int) -> None:
        request = pb.ReleaseRankRequest(model=model.model, rank=rank, lease_epoch=lease_epoch)
        await self._command(Method.RELEASE_RANK, request)

    async def set_learning_rate(self, model: Description, learning_rate: float, from_step: int | None) -> int:
        request = pb.SetLearningRateRequest(
            model=model.model, generation=model.generation, learning_rate=learning_rate, from_step=from_step
        )
        answer = await self._of(model, self._command(Method.SET_LEARNING_RATE, request))
        return int(answer.from_step)

    async def pin(self, model: Description, step: int | None) -> PinGrant:
        request = pb.PinModelRequest(model=model.model, generation=model.generation, step=step)
        answer = await self._of(model, self._command(Method.PIN_MODEL, request))
        return PinGrant(answer.pin, answer.step, answer.lease_ms)

    async def release_pin(self, model: Description, pin: int) -> None:
        request = pb.ReleasePinRequest(model=model.model, generation=model.generation, pin=pin)
        await self._command(Method.RELEASE_PIN, request)

    async def load(self, spec: ModelSpec, step: int, rates: tuple[tuple[int, float], ...]) -> LoadGrant:
        request = pb.LoadModelRequest(
            spec=spec_to_proto(spec),
            step=step,
            rates=[pb.RateFrom(step=at, learning_rate=rate) for at, rate in rates],
        )
        answer = await self._command(Method.LOAD_MODEL, request)
        return LoadGrant(self._description(answer.model), answer.epoch, answer.lease_ms)

    async def give_up(self, model: Description) -> None:
        """A load; one that is open stays."""
        request = pb.DeleteModelRequest(model=model.model, generation=model.generation, loading=True)
        await self._command(Method.DELETE_MODEL, request)

    async def delete(self, model: Description, *, force: bool) -> None:
        request = pb.DeleteModelRequest(model=model.model, generation=model.generation, force=force)
        await self._of(model, self._command(Method.DELETE_MODEL, request))

    async def models(self) -> list[ModelSummary]:
        found: list[ModelSummary] = []
        while True:
            request = pb.ListModelsRequest(after=found[-1].name if found else "")
            answer = await self._call(Method.LIST_MODELS, request)
            found += [
                ModelSummary(
                    name=one.name,
                    model=one.model,
                    generation=one.generation,
                    parameters=one.parameters,
                    open=one.open,
                    ranks=one.ranks,
                    ranks_held=one.ranks_held,
                    optimizer=one.optimizer,
                )
                for one in answer.models
            ]
            if not answer.more or not answer.models:
                return found

    async def renew(
        self, model: Description, *, rank: int = 0, lease_epoch: int = 0, initialization_epoch: int = 0, pin: int = 0
    ) -> tuple[int, View]:
        """(lease in ms, the view of now). Not a command: renewals are not logged (RULES I4), so they take no turn."""
        request = pb.RenewLeaseRequest(
            session=await self._open_session(),
            secret=self._session.secret,
            model=model.model,
            rank=rank,
            lease_epoch=lease_epoch,
            initialization_epoch=initialization_epoch,
            pin=pin,
        )
        answer = await self._of(model, self._call(Method.RENEW_LEASE, request))
        return answer.lease_ms, view_from_proto(answer.view)

    # --- sessions and sequences

    async def _command(self, method: Method, request: Any, final: frozenset[Reason] = frozenset()) -> Any:
        async with self._turn:
            request.secret = self._session.secret
            self._sequence += 1
            request.sequence = self._sequence
            while True:
                request.session = await self._open_session()
                try:
                    return await self._try(method, request, final)
                except Refusal as refusal:
                    if refusal.reason is not Reason.UNKNOWN_SESSION:
                        raise to_error(refusal) from None
                    # Group 0 dropped it to make room; nothing of ours is under it any more.
                    self._session_id = 0

    async def _open_session(self) -> int:
        async with self._opening:
            if not self._session_id:
                request = pb.OpenSessionRequest(
                    client=self._session.client, secret_digest=self._session.secret_digest, name=self._name
                )
                answer = await self._call(Method.OPEN_SESSION, request)
                self._session_id = answer.session
            return self._session_id

    async def _call(self, method: Method, request: Any) -> Any:
        try:
            return await self._try(method, request)
        except Refusal as refusal:
            raise to_error(refusal) from None

    # --- attempts

    async def _try(self, method: Method, request: Any, final: frozenset[Reason] = frozenset()) -> Any:
        """Until there is an answer or a Refusal that is final: by itself, or because its reason is in `final`."""
        backoff = Backoff(BACKOFF, budget=self._routes.retries)
        turn = 0
        while True:
            route = self._routes.get(GROUP)
            if route is None or route.suspect:
                route = self._anyone(turn)
                turn += 1
            try:
                answer = await self._unless_moved(
                    route, self._network.call(route.address, method, request, ATTEMPT_TIMEOUT_S)
                )
            except Refusal as refusal:
                if refusal.reason in final or not transient(refusal):
                    raise
                self.problem = refusal.message
                self._routes.suspect(route)
                if refusal.reason is Reason.NOT_LEADER and self._routes.hint(
                    group=GROUP, term=refusal.term, address=refusal.leader_address
                ):
                    continue
                await self._routes.changed(GROUP, backoff.next_s(refusal.retry_after_ms))
            except _Moved:
                continue
            else:
                self.problem = ""
                return answer

    def _anyone(self, turn: int) -> Route:
        """Some member of group 0 to ask; who does not lead says who does."""
        addresses = self._cluster.addresses(GROUP)
        known = self._routes.get(GROUP)
        return Route(GROUP, 0 if known is None else known.term, addresses[turn % len(addresses)])

    async def _unless_moved(self, route: Route, call: Awaitable[T]) -> T:
        """The call's answer; _Moved when group 0 turns out to be led elsewhere while it runs (RULES C7)."""
        calling: asyncio.Future[T] = asyncio.ensure_future(call)
        moving = asyncio.ensure_future(self._later_term(route))
        both: list[asyncio.Future[Any]] = [calling, moving]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if calling.done():
                return calling.result()
            raise _Moved
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)

    async def _later_term(self, route: Route) -> None:
        while True:
            known = self._routes.get(GROUP)
            if known is not None and known.term > route.term:
                return
            await self._routes.changed(GROUP)


class _Moved(Exception):
    pass
