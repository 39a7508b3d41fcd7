"""The same calls for code that runs on asyncio: same names, awaited.

    async with aio.connect("127.0.0.1:7001") as client:
        model = await client.model("demo", {"w": (10,)}, optimizer=paramserver.sgd(0.1), rank=0, initial=zeros)
        weights = await model.pull()
        weights = await model.push_pull(gradients, step=model.step)

The client's own thread does the work, so any event loop may await it. Reading, checking and copying of gradients and
the making of arrays happen where the call is made, as they do without asyncio.

Cancellation: a call that is cancelled ends when nothing of it runs any more, so that buffers are the caller's again. A
step whose `push` or `push_pull` was cancelled after it began rests, as one does whose budget is used up: `await
model.wait()` goes on with it, nothing is lost and nothing applied twice; its gradient buffer must still rest. Must not
know: streams, steps.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar, overload

from paramserver.wire.spec import Codec, ModelSpec, NonFinite, OptimizerSpec, Reduction
from worker import client as blocking
from worker.arguments import given_fields
from worker.catalogue import Description, ModelSummary
from worker.channels import GrpcNetwork
from worker.client import SessionPlace
from worker.consistency import Consistency
from worker.environment import from_environment
from worker.futures import settled
from worker.handover import Handover as BlockingHandover
from worker.initialize import Initial
from worker.intake import Counts, Norms
from worker.loading import LOAD_TIMEOUT_S, Loaded
from worker.model import Model as BlockingModel
from worker.network import Network
from worker.replicas import PullPolicy
from worker.retry import TIMEOUT_S
from worker.routing import Route
from worker.saving import SAVE_TIMEOUT_S, Progress, Saved
from worker.spec import Bsp, Shapes, Spec
from worker.tensors import Pushed, Tensors

T = TypeVar("T")

__all__ = ["Client", "Connecting", "Handover", "Model", "connect"]


def connect(
    servers: str | Sequence[str] | None = None,
    *,
    name: str | None = None,
    timeout: float = TIMEOUT_S,
    session_file: SessionPlace = None,
    pull_policy: str = PullPolicy.LEAST_OUTSTANDING,
    zone: str = "",
    network: Callable[[], Network] = GrpcNetwork,
) -> Connecting:
    """`paramserver.connect`: `async with connect(...) as client`, or `client = await connect(...)`.

    Raises InvalidArgument at once; Unavailable and SessionFileError when it is awaited."""
    servers, session_file = from_environment(servers, session_file)
    client = blocking.client_of(servers, name, timeout, pull_policy, zone, network)
    return Connecting(client, session_file)


class Connecting:
    """What `connect` gives: to be awaited, or entered; once."""

    def __init__(self, client: blocking.Client, session_file: SessionPlace) -> None:
        self._client = client
        self._session_file = session_file
        self._made: Client | None = None

    def __await__(self) -> Generator[Any, None, Client]:
        return self._open().__await__()

    async def __aenter__(self) -> Client:
        self._made = await self._open()
        return self._made

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._made is not None:
            await self._made.close()

    async def _open(self) -> Client:
        try:
            await settled(self._client._opening(self._session_file))
        except BaseException:
            await _in_thread(self._client.close)
            raise
        return Client(self._client)


class Client:
    """`paramserver.Client`, awaited. Made by `connect`; an async context manager."""

    def __init__(self, client: blocking.Client) -> None:
        self._client = client

    @property
    def name(self) -> str:
        """How servers name this client."""
        return self._client.name

    @property
    def timeout(self) -> float:
        """Seconds; the default of every call."""
        return self._client.timeout

    @property
    def cluster(self) -> str:
        """The cluster's id, hexadecimal."""
        return self._client.cluster

    @property
    def nodes(self) -> dict[int, str]:
        """Node -> address."""
        return self._client.nodes

    @property
    def zones(self) -> dict[int, str]:
        """Node -> the zone it was started with, of those that have one and have said so."""
        return self._client.zones

    @property
    def session_file(self) -> str:
        """Where the session is kept; empty when it ends with the process."""
        return self._client.session_file

    def leaders(self) -> dict[int, Route]:
        """Group -> who leads it, as far as this client knows. Raises Forked."""
        return self._client.leaders()

    async def unreachable(self) -> dict[int, str]:
        """Node -> why, for nodes to which no connection stands. Raises Closed, Forked."""
        return await settled(self._client._unreachable())

    async def model(
        self,
        name: str,
        tensors: Shapes | Spec | None = None,
        *,
        optimizer: OptimizerSpec | None = None,
        ranks: int | None = None,
        rank: int | None = None,
        mode: Bsp | None = None,
        initial: Initial | None = None,
        reduction: Reduction | None = None,
        non_finite: NonFinite | None = None,
        block_bytes: int | None = None,
        log_codec: str | Codec | None = None,
        codec: str | Codec = "fp32",
        weights_codec: str | Codec = "fp32",
        clip_norm: float | None = None,
        reject_norm: float | None = None,
        frozen: Collection[str] = (),
        timeout: float | None = None,
    ) -> Model:
        """`paramserver.Client.model`, awaited: shapes, units and errors are the same. Raises SpecMismatch, NotFound,
        RankTaken, InvalidArgument, DeadlineExceeded, Closed, Forked."""
        given = given_fields(
            optimizer=optimizer,
            ranks=ranks,
            mode=mode,
            reduction=reduction,
            non_finite=non_finite,
            block_bytes=block_bytes,
            log_codec=log_codec,
        )
        norms = Norms(clip_norm, reject_norm)
        opening = self._client._model(name, tensors, given, rank, initial, codec, weights_codec, norms, frozen, timeout)
        return Model(await settled(opening))

    async def models(self, *, timeout: float | None = None) -> list[ModelSummary]:
        """The cluster's models, by name. Raises Unavailable, DeadlineExceeded, Closed, Forked."""
        return await settled(self._client._models_listed(timeout))

    async def describe(self, name: str, *, timeout: float | None = None) -> Description:
        """A model as group 0 knows it, without opening it. Raises NotFound, DeadlineExceeded, Closed, Forked."""
        return await settled(self._client._described(name, timeout))

    async def save(
        self,
        name: str,
        path: str | os.PathLike[str],
        *,
        step: int | None = None,
        timeout: float = SAVE_TIMEOUT_S,
        progress: Progress | None = None,
    ) -> Saved:
        """`paramserver.Client.save`, awaited. Raises what that does."""
        return await settled(self._client._saving(name, path, step, timeout, progress))

    async def load(
        self,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        timeout: float = LOAD_TIMEOUT_S,
        progress: Progress | None = None,
    ) -> Loaded:
        """`paramserver.Client.load`, awaited. Raises what that does."""
        return await settled(self._client._loading(path, name, timeout, progress))

    async def delete(self, name: str, *, force: bool = False, timeout: float | None = None) -> None:
        """`paramserver.Client.delete`, awaited. Raises NotFound, FailedPrecondition, DeadlineExceeded, Closed,
        Forked."""
        await settled(self._client._deleting(name, force, timeout))

    async def close(self, *, release: bool = True) -> None:
        """Close all models and the connection. Raises nothing."""
        await _in_thread(lambda: self._client.close(release=release))

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class Model:
    """`paramserver.Model`, awaited. Made by `Client.model`; an async context manager. One task at a time."""

    def __init__(self, model: BlockingModel) -> None:
        self._model = model

    @property
    def name(self) -> str:
        """Of the model."""
        return self._model.name

    @property
    def spec(self) -> ModelSpec:
        """Tensors (name, shape, float32), optimizer, ranks and policies."""
        return self._model.spec

    @property
    def rank(self) -> int | None:
        """The rank that this handle pushes as; None: it only pulls."""
        return self._model.rank

    @property
    def step(self) -> int:
        """The next step to compute. Raises Forked."""
        return self._model.step

    @property
    def groups(self) -> tuple[int, ...]:
        """The groups that hold this model's blocks."""
        return self._model.groups

    @property
    def codec(self) -> Codec:
        """Of the gradients that this handle pushes."""
        return self._model.codec

    @property
    def weights_codec(self) -> Codec:
        """Of the weights that come to this handle."""
        return self._model.weights_codec

    @property
    def counts(self) -> Counts:
        """How many gradients of this handle were `rejected`, `skipped` and `clipped`."""
        return self._model.counts

    @overload
    async def pull(
        self,
        tensors: Collection[str] | None = None,
        *,
        version: int | None = None,
        min_version: int | None = None,
        consistency: Consistency | None = None,
        if_newer_than: None = None,
        timeout: float | None = None,
        out: Mapping[str, Any] | None = None,
    ) -> Tensors: ...

    @overload
    async def pull(
        self,
        tensors: Collection[str] | None = None,
        *,
        version: int | None = None,
        min_version: int | None = None,
        consistency: Consistency | None = None,
        if_newer_than: int,
        timeout: float | None = None,
        out: Mapping[str, Any] | None = None,
    ) -> Tensors | None: ...

    async def pull(
        self,
        tensors: Collection[str] | None = None,
        *,
        version: int | None = None,
        min_version: int | None = None,
        consistency: Consistency | None = None,
        if_newer_than: int | None = None,
        timeout: float | None = None,
        out: Mapping[str, Any] | None = None,
    ) -> Tensors | None:
        """`paramserver.Model.pull`, awaited: name -> float32 array of the tensor's shape. Raises Gone,
        DeadlineExceeded, InvalidArgument, Closed, Forked."""
        model = self._model
        return await settled(model._pull(tensors, version, min_version, consistency, if_newer_than, timeout, out))

    def buffer(self) -> Tensors:
        """Arrays to write gradients into: name -> float32 array of the tensor's shape. Raises Closed, Forked."""
        return self._model.buffer()

    async def push_pull(
        self,
        gradients: Mapping[str, Any] | None = None,
        *,
        step: int | None = None,
        partial: bool = False,
        timeout: float | None = None,
        out: Mapping[str, Any] | None = None,
    ) -> Tensors:
        """`paramserver.Model.push_pull`, and the weights after the step: name -> float32 array of the tensor's shape.
        Raises what that raises, and what its future ends with."""
        return await settled(self._model.push_pull(gradients, step=step, partial=partial, timeout=timeout, out=out))

    async def push(
        self,
        gradients: Mapping[str, Any] | None = None,
        *,
        step: int | None = None,
        partial: bool = False,
        timeout: float | None = None,
    ) -> Pushed:
        """`paramserver.Model.push`, awaited. Raises what that raises, and what its future ends with."""
        return await settled(self._model.push(gradients, step=step, partial=partial, timeout=timeout))

    async def begin(self, *, step: int | None = None, out: Mapping[str, Any] | None = None) -> Handover:
        """`paramserver.Model.begin`, awaited: a step that takes its gradients, arrays of the tensors' shapes, one by
        one. Raises what that raises."""
        return Handover(await settled(self._model._begin(step, out)))

    def accumulate(self, gradients: Mapping[str, Any], *, weight: float = 1.0) -> int:
        """`paramserver.Model.accumulate`: arrays of the tensors' shapes are added up; nothing is awaited. Raises
        InvalidArgument, FailedPrecondition, Closed, Forked."""
        return self._model.accumulate(gradients, weight=weight)

    def discard(self) -> None:
        """Forget what was accumulated. Raises Closed, Forked."""
        self._model.discard()

    async def wait(self, timeout: float | None = None) -> Tensors:
        """`paramserver.Model.wait`, awaited: name -> float32 array of the tensor's shape; goes on with a step that was
        cancelled, or ran out of time. Raises FailedPrecondition, and what the futures of `push_pull` raise."""
        return await settled(self._model.resume(timeout=timeout))

    def why(self) -> str:
        """What the step in flight waits for, in one line. Raises Closed, Forked."""
        return self._model.why()

    async def absent_ranks(self, timeout: float | None = None) -> list[int]:
        """Ranks that no worker holds now. Raises Unavailable, DeadlineExceeded, Closed, Forked."""
        return await settled(self._model.absent_ranks(timeout))

    async def set_learning_rate(
        self, value: float, from_step: int | None = None, *, timeout: float | None = None
    ) -> int:
        """`paramserver.Model.set_learning_rate`, awaited: the step from which it holds. Raises InvalidArgument,
        FailedPrecondition, NotFound, DeadlineExceeded, Closed, Forked."""
        return await settled(self._model._set_learning_rate(value, from_step, timeout))

    async def save(
        self,
        path: str | os.PathLike[str],
        *,
        step: int | None = None,
        timeout: float = SAVE_TIMEOUT_S,
        progress: Progress | None = None,
    ) -> Saved:
        """`paramserver.Client.save` of this model, awaited. Raises what that does."""
        return await settled(self._model._saving(path, step, timeout, progress))

    async def close(self, *, release: bool = True) -> None:
        """Let go of the rank and the streams. Raises nothing."""
        await _in_thread(lambda: self._model.close(release=release))

    async def __aenter__(self) -> Model:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class Handover:
    """`paramserver.Handover`, whose end is awaited. Made by `Model.begin`."""

    def __init__(self, handover: BlockingHandover) -> None:
        self._handover = handover

    @property
    def step(self) -> int:
        """The step that is pushed."""
        return self._handover.step

    @property
    def buffer(self) -> Tensors:
        """name -> float32 array of the tensor's shape: `put(name)` takes what was written here."""
        return self._handover.buffer

    @property
    def streamed(self) -> bool:
        """Blocks are sent as they are whole; else all of them when `finish` is called."""
        return self._handover.streamed

    @property
    def missing(self) -> tuple[str, ...]:
        """Tensors that were not put yet, in the model's order."""
        return self._handover.missing

    def put(self, name: str, gradient: Any = None) -> None:
        """`paramserver.Handover.put`: an array of the tensor's shape; nothing is awaited. Raises what that raises."""
        self._handover.put(name, gradient)

    async def finish(self, *, partial: bool = False, timeout: float | None = None) -> Tensors:
        """`paramserver.Handover.finish`, and the weights after the step: name -> float32 array of the tensor's shape.
        Cancelled, it goes on with `Model.wait`. Raises what that raises, and what its future ends with."""
        return await settled(self._handover.finish(partial=partial, timeout=timeout))


async def _in_thread(function: Callable[[], None]) -> None:
    """It is done when this returns, also when this is cancelled."""
    running = asyncio.ensure_future(asyncio.to_thread(function))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise
