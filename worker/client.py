"""The front door: `connect()` and the `Client` it gives.

    with paramserver.connect("127.0.0.1:7001,127.0.0.1:7002,127.0.0.1:7003") as client:
        model = client.model("demo", {"w": (10,)}, optimizer=paramserver.sgd(0.1), rank=0, initial={"w": zeros})

Owns the background thread, the session, and what all models of a client share: channels, routes, group 0. Invariants:
every call has one finite budget; a call after `close()` raises Closed; a client used in a forked child raises Forked,
for gRPC does not survive a fork. Must not know: steps, blocks.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import re
import socket
import threading
import weakref
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

from paramserver.wire.errors import Refusal
from paramserver.wire.spec import Codec, NonFinite, OptimizerSpec, Reduction
from worker import session as sessions
from worker.arguments import check_rank, given_fields, parse_servers, spec_asked_for
from worker.catalogue import Catalogue, Description
from worker.channels import GrpcNetwork
from worker.environment import from_environment
from worker.errors import (
    Closed,
    DeadlineExceeded,
    FailedPrecondition,
    Forked,
    NotFound,
    ParameterServerError,
    SpecMismatch,
    Unavailable,
)
from worker.futures import Future
from worker.initialize import Initial, Initializer
from worker.intake import Norms
from worker.loop import LoopThread, outcome
from worker.membership import Cluster, Discovery, Watchers
from worker.model import Model
from worker.network import Network
from worker.refusals import to_error
from worker.replicas import PullPolicy, Replicas, checked_policy
from worker.retry import CLOSE_TIMEOUT_S, TIMEOUT_S, Budget, check_timeout
from worker.routing import Route, Routes
from worker.spec import Bsp, Shapes, Spec, check_name, codec_of
from worker.whole import WholeModels
from worker.within import within

T = TypeVar("T")

SessionPlace: TypeAlias = "str | os.PathLike[str] | Callable[[str], Path] | None"


def connect(
    servers: str | Sequence[str] | None = None,
    *,
    name: str | None = None,
    timeout: float = TIMEOUT_S,
    session_file: SessionPlace = None,
    pull_policy: str = PullPolicy.LEAST_OUTSTANDING,
    zone: str = "",
    network: Callable[[], Network] = GrpcNetwork,
) -> Client:
    """Connect to a cluster.

    servers: "host:port,host:port,..." or a list; one that answers is enough, all others are learned from it. None: what
        PARAMSERVER_SERVERS says, and PARAMSERVER_SESSION for `session_file`, as `paramserver launch` sets them.
    name: how servers name this client to others; None: host and process id.
    timeout: seconds, up to a day; of this call, and the default of every call on the client.
    session_file: where the session is kept, so that the same program started again takes its rank back at once. A path,
        or a function from the cluster's id (hexadecimal) to one. None: the session ends with the process.
    pull_policy: which replica a pull asks: "least_outstanding" (who has the fewest bytes to send to this client),
        "round_robin", "nearest" (servers of the same zone first), "leader". All have the same bits; who is behind,
        slow or gone is left for another.
    zone: where this client stands: the label that near servers have (--zone).
    network: for tests.

    Returns a context manager, which is closed at its end. Raises InvalidArgument, Unavailable (nobody answered in
    time), SessionFileError.
    """
    servers, session_file = from_environment(servers, session_file)
    client = client_of(servers, name, timeout, pull_policy, zone, network)
    try:
        client._result(client._opening(session_file))
    except BaseException:
        client.close()
        raise
    return client


def client_of(
    servers: str | Sequence[str],
    name: str | None,
    timeout: float,
    pull_policy: str,
    zone: str,
    network: Callable[[], Network],
) -> Client:
    """A client that is still to be opened. Raises InvalidArgument."""
    addresses = parse_servers(servers)
    check_timeout(timeout, "connect")
    policy = checked_policy(pull_policy, zone)
    if name is not None:
        check_name("name", name)
    return Client(addresses, name=name or _default_name(), timeout=timeout, policy=policy, zone=zone, network=network)


class Client(WholeModels):
    """A connection to a cluster. Made by `connect`; a context manager. Models of one client may be used in several
    threads, one model in one thread at a time."""

    def __init__(
        self,
        servers: Sequence[str],
        *,
        name: str,
        timeout: float,
        policy: PullPolicy,
        zone: str,
        network: Callable[[], Network],
    ) -> None:
        self.name = name
        self.timeout = timeout
        self._servers = servers
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._closed = False
        self._models: list[Model] = []
        self._loads = set()
        self._file: sessions.SessionFile | None = None
        self._make_network = network
        self._policy = policy
        self._zone = zone
        self._loop = LoopThread("paramserver-client")
        self._network: Network
        self._cluster: Cluster
        self._problems: dict[str, str] = {}
        self._routes = Routes()
        self._watchers: Watchers
        self._catalogue: Catalogue
        self._replicas: Replicas
        self._forget = _close_at_exit(self)

    # --- opening

    def _opening(self, session_file: SessionPlace) -> Future[None]:
        return self._call(self._open(session_file), self.timeout + CLOSE_TIMEOUT_S, "connect")

    async def _open(self, session_file: SessionPlace) -> None:
        budget = Budget(self.timeout, "connect")
        try:
            await within(budget, self._discover(), lambda: "")
        except DeadlineExceeded:
            reasons = "; ".join(f"{server}: {problem}" for server, problem in sorted(self._problems.items()))
            raise Unavailable(
                f"no server answered within {self.timeout:g} s ({reasons or ', '.join(self._servers)})",
                "are they running, and are these their addresses?",
            ) from None
        cluster = self.cluster
        if session_file is None:
            session = sessions.new(cluster)
        else:
            path = session_file(cluster) if callable(session_file) else session_file
            self._file = await asyncio.to_thread(sessions.SessionFile.open, path, cluster)
            session = self._file.session
        await self._start(session)

    async def _discover(self) -> None:
        self._network = self._make_network()
        discovery = Discovery(self._network, self._servers)
        self._problems = discovery.problems
        self._cluster = await discovery.run(self._routes)

    async def _start(self, session: sessions.Session) -> None:
        self._watchers = Watchers(self._network, self._cluster, self._routes, self.name)
        self._watchers.start()
        self._replicas = Replicas(
            self._policy,
            now_s=asyncio.get_running_loop().time,
            zone=self._zone,
            zones=lambda: self._cluster.zones,
            first=int.from_bytes(session.client[:4]),
        )
        self._catalogue = Catalogue(self._network, self._cluster, self._routes, session, self.name)

    # --- what it knows

    @property
    def cluster(self) -> str:
        """The cluster's id, hexadecimal."""
        return self._cluster.identity.hex()

    @property
    def nodes(self) -> dict[int, str]:
        """Node -> address."""
        return {node.node: node.address for node in self._cluster.nodes.values()}

    @property
    def zones(self) -> dict[int, str]:
        """Node -> the zone it was started with, of those that have one and have said so."""
        known = self._cluster.zones
        return {node.node: known[node.address] for node in self._cluster.nodes.values() if node.address in known}

    @property
    def session_file(self) -> str:
        """Where the session is kept; empty when it ends with the process."""
        return str(self._file.path) if self._file is not None else ""

    def leaders(self) -> dict[int, Route]:
        """Group -> who leads it, as far as this client knows (group 0: the catalogue). Costs nothing. Raises
        Forked."""
        self._check_process()
        return self._routes.known()

    def unreachable(self) -> dict[int, str]:
        """Node -> why, for nodes to which no connection stands. Raises Closed, Forked."""
        return self._result(self._unreachable())

    def _unreachable(self) -> Future[dict[int, str]]:
        self._check()
        return self._call(_value(self._watchers.unreachable), self.timeout, "unreachable")

    # --- models

    def model(
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
        """Create a model or open the one of that name, and take a rank of it. The same call again opens it again.

        name: 1 to 200 printable characters, no path.
        tensors: a `Spec`; or name -> shape, or name -> array (for its shape only), which with `optimizer`, `ranks`,
            `mode`, `reduction`, `non_finite`, `block_bytes` and `log_codec` make one: see there. Without it the model
            must exist.
        rank: the one this handle pushes as, from 0; None: it only pulls.
        initial: name -> array, or a function that gives them; used by the first client only, once in the model's life.
            Without it the call waits until another client has sent them.
        codec: "fp32", "bf16" or "fp16": in which this handle's gradients travel; they are summed in fp32.
        weights_codec: in which weights come back, by push_pull and pull; the servers keep fp32. Ranks that take the
            same one compute with the same bits.
        clip_norm: this handle's gradients of a greater Euclidean norm are scaled down to it before they are sent.
        reject_norm: those of a greater norm are NormTooLarge.
        frozen: names of tensors of which this handle pushes nothing, and takes no gradients; all ranks are to name the
            same, from the first step on, and then their weights keep their bits.
        timeout: seconds; None: the client's.

        Returns when the model is open and the rank held. Raises SpecMismatch (the model has another spec; the error has
        both), NotFound, RankTaken (it names the holder and when its lease ends), InvalidArgument, DeadlineExceeded,
        Closed, Forked."""
        given = given_fields(
            optimizer=optimizer,
            ranks=ranks,
            mode=mode,
            reduction=reduction,
            non_finite=non_finite,
            block_bytes=block_bytes,
            log_codec=log_codec,
        )
        return self._result(
            self._model(
                name,
                tensors,
                given,
                rank,
                initial,
                codec,
                weights_codec,
                Norms(clip_norm, reject_norm),
                frozen,
                timeout,
            )
        )

    def _model(
        self,
        name: str,
        tensors: Shapes | Spec | None,
        given: dict[str, Any],
        rank: int | None,
        initial: Initial | None,
        codec: str | Codec,
        weights_codec: str | Codec,
        norms: Norms,
        frozen: Collection[str],
        timeout: float | None,
    ) -> Future[Model]:
        self._check()
        spec = spec_asked_for(name, tensors, given, initial)
        push, back = codec_of("codec", codec), codec_of("weights_codec", weights_codec)
        if rank is not None:
            check_rank(rank, spec.ranks if spec is not None else None)
        model = Model(client=self, name=name)
        initializer = Initializer(
            network=self._network, cluster=self._cluster, routes=self._routes, catalogue=self._catalogue
        )

        async def work() -> Model:
            if spec is None:
                described = await self._catalogue.describe(name)
            else:
                described = await self._create(spec, name)
            if rank is not None:
                check_rank(rank, described.spec.ranks)
            described = await initializer.run(described, initial)
            try:
                await model._start(
                    described,
                    rank,
                    norms=norms,
                    frozen=frozen,
                    network=self._network,
                    cluster=self._cluster,
                    routes=self._routes,
                    watchers=self._watchers,
                    catalogue=self._catalogue,
                    codec=push,
                    weights_codec=back,
                    replicas=self._replicas,
                )
                if self._file is not None and rank is not None:
                    await asyncio.to_thread(self._file.note, name, rank)
            except asyncio.CancelledError:
                # Nobody will ever see the handle; this session takes the rank back at once.
                await model._engine.close(release=False)
                raise
            with self._lock:
                self._models.append(model)
            return model

        def why() -> str:
            unreachable = ", ".join(map(str, self._watchers.unreachable()))
            known = (initializer.state, self._catalogue.problem, unreachable and f"nodes {unreachable} unreachable")
            return "; ".join(part for part in known if part)

        return self._call(work(), self.timeout if timeout is None else timeout, f"model {name!r}", why)

    async def _create(self, spec: Spec, name: str) -> Description:
        asked = spec.named(name)
        try:
            return await self._catalogue.create(asked)
        except SpecMismatch as mismatch:
            try:
                found = await self._catalogue.describe(name)
            except NotFound:
                raise mismatch from None  # it was deleted meanwhile
            if spec.any_blocks and found.spec == replace(asked, block_bytes=found.spec.block_bytes):
                return found
            raise SpecMismatch(mismatch.cause, mismatch.hint, found=found.spec, asked=asked) from None

    # --- the end

    def close(self, *, release: bool = True) -> None:
        """Close all models and the connection. `release`: let others have the ranks at once; otherwise their leases
        end by themselves. Steps in flight end with OutcomeUnknown. A second call does nothing, nor does one in a forked
        child. Raises FailedPrecondition in a callback of this client."""
        if not self._own_process:
            return
        if self._loop.inside:
            raise FailedPrecondition("close() in a callback of the client", "its own thread cannot end itself")
        with self._lock:
            if self._closed:
                return
            self._closed = True
            models, self._models = self._models, []
        self._forget()
        for model in models:
            model._close(release)
        try:
            outcome(self._loop.submit(self._shut()), CLOSE_TIMEOUT_S)
        except (ParameterServerError, TimeoutError):
            pass  # the process goes on either way, and sockets close with it
        self._loop.stop()
        if self._file is not None:
            self._file.close()

    async def _shut(self) -> None:
        if hasattr(self, "_watchers"):
            await self._watchers.close()
        if hasattr(self, "_network"):
            await self._network.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- for Model

    @property
    def _own_process(self) -> bool:
        return os.getpid() == self._pid

    def _check_process(self) -> None:
        if not self._own_process:
            raise Forked("this client was made before a fork", "connect() in the child; gRPC does not survive a fork")

    def _check(self) -> None:
        self._check_process()
        if self._closed:
            raise Closed("the client is closed", "connect() again")

    def _call(
        self, work: Coroutine[Any, Any, T], timeout_s: float, what: str, why: Callable[[], str] = lambda: ""
    ) -> Future[T]:
        """Run `work` on the loop within a budget."""
        try:
            budget = Budget(timeout_s, what)
        except BaseException:
            work.close()
            raise
        return self._start_job(work, budget, what, why, bounded=True)

    def _future(self, work: Coroutine[Any, Any, T], budget: Budget, what: str, why: Callable[[], str]) -> Future[T]:
        """Run `work`, which keeps to the budget itself."""
        return self._start_job(work, budget, what, why, bounded=False)

    def _start_job(
        self, work: Coroutine[Any, Any, T], budget: Budget, what: str, why: Callable[[], str], *, bounded: bool
    ) -> Future[T]:
        async def told() -> T:
            try:
                return await (within(budget, work, why) if bounded else work)
            except Refusal as refusal:
                raise to_error(refusal) from None

        return Future(self._loop.submit(told(), work), budget, what, why, self._check_process)

    def _result(self, future: Future[T]) -> T:
        """Ctrl-C gives it up."""
        try:
            return future.result()
        except BaseException:
            future._job.stop()
            raise

    def _run(self, work: Coroutine[Any, Any, T], timeout_s: float, what: str, why: Callable[[], str]) -> T:
        return self._result(self._call(work, timeout_s, what, why))

    def _dropped(self, model: Model) -> None:
        with self._lock:
            if model in self._models:
                self._models.remove(model)


def _default_name() -> str:
    host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname()).strip(".-")[:60] or "worker"
    return f"{host}-{os.getpid()}"


async def _value(function: Callable[[], T]) -> T:
    return function()


def _close_at_exit(client: Client) -> Callable[[], None]:
    """Close it when the interpreter ends, without keeping it alive until then. Returns what undoes this."""
    reference = weakref.ref(client)

    def close() -> None:
        found = reference()
        if found is not None:
            found.close(release=False)

    atexit.register(close)
    return lambda: atexit.unregister(close)
