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
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

from paramserver.wire.errors import Refusal
from paramserver.wire.spec import (
    BLOCK_BYTES_DEFAULT,
    Codec,
    ModelSpec,
    NonFinite,
    OptimizerSpec,
    Reduction,
    TensorSpec,
    codec_named,
    usual_block_bytes,
)
from worker import session as sessions
from worker.catalogue import Catalogue, Description
from worker.channels import GrpcNetwork
from worker.errors import (
    Closed,
    DeadlineExceeded,
    Forked,
    InvalidArgument,
    ParameterServerError,
    SpecMismatch,
    Unavailable,
)
from worker.initialize import Initial, Initializer
from worker.loop import LoopThread, outcome
from worker.membership import Cluster, Discovery, Watchers
from worker.model import Model
from worker.network import Network
from worker.refusals import to_error
from worker.replicas import PullPolicy, Replicas, checked_policy
from worker.retry import CLOSE_TIMEOUT_S, TIMEOUT_S, Budget, check_timeout
from worker.routing import Route, Routes
from worker.within import within

T = TypeVar("T")

Tensors: TypeAlias = "Mapping[str, Sequence[int] | Any] | Sequence[TensorSpec]"
"""name -> shape, in the order they lie in, or name -> array of that shape; or TensorSpecs."""
SessionPlace: TypeAlias = "str | os.PathLike[str] | Callable[[str], Path] | None"

SERVERS_MAX = 1024


def connect(
    servers: str | Sequence[str],
    *,
    name: str | None = None,
    timeout: float = TIMEOUT_S,
    session_file: SessionPlace = None,
    pull_policy: str = PullPolicy.LEAST_OUTSTANDING,
    zone: str = "",
    network: Callable[[], Network] = GrpcNetwork,
) -> Client:
    """Connect to a cluster.

    servers: "host:port,host:port,..." or a list; one that answers is enough, all others are learned from it. name: how
    servers name this client to others (default: host and process id). timeout: seconds; of this call, and the default
    of every call on the client. session_file: where the session is kept, so that the same program started again takes
    its rank back at once. A path, or a
        function from the cluster's id (hexadecimal) to one. None: the session ends with the process.
    pull_policy: which replica a pull asks: "least_outstanding" (who has the fewest bytes to send to this client),
        "round_robin", "nearest" (servers of the same zone first), "leader". All have the same bits; who is behind,
        slow or gone is left for another. zone: where this client stands: the label that near servers have (--zone).
    network: for tests.

    Raises InvalidArgument, Unavailable (nobody answered in time), SessionFileError.
    """
    addresses = parse_servers(servers)
    check_timeout(timeout, "connect")
    policy = checked_policy(pull_policy, zone)
    client_name = name if name is not None else _default_name()
    client = Client(addresses, name=client_name, timeout=timeout, policy=policy, zone=zone, network=network)
    try:
        client._open(session_file)
    except BaseException:
        client.close()
        raise
    return client


class Client:
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

    def _open(self, session_file: SessionPlace) -> None:
        try:
            self._run(self._discover(), self.timeout, "connect", lambda: "")
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
            self._file = sessions.SessionFile.open(
                session_file(cluster) if callable(session_file) else session_file, cluster
            )
            session = self._file.session
        self._run(self._start(session), self.timeout, "connect", lambda: "")

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
        """Group -> who leads it, as far as this client knows (group 0: the catalogue). Costs nothing."""
        return self._routes.known()

    def unreachable(self) -> dict[int, str]:
        """Node -> why, for nodes to which no connection stands."""
        self._check()
        return self._run(_value(self._watchers.unreachable), self.timeout, "unreachable", lambda: "")

    # --- models

    def model(
        self,
        name: str,
        tensors: Tensors | None = None,
        *,
        optimizer: OptimizerSpec | None = None,
        ranks: int = 1,
        rank: int | None = None,
        initial: Initial | None = None,
        reduction: Reduction = Reduction.MEAN,
        non_finite: NonFinite = NonFinite.REJECT,
        block_bytes: int | None = None,
        log_codec: str | Codec = "fp32",
        codec: str | Codec = "fp32",
        weights_codec: str | Codec = "fp32",
        timeout: float | None = None,
    ) -> Model:
        """Create a model or open the one of that name, and take a rank of it.

        tensors, optimizer: what it is (arrays stand for their shapes only); without them it must exist. One of the
            same name and another spec is SpecMismatch.
        ranks: how many workers push each step; every one of them, `rank` from 0, must.
        rank: the one this handle pushes as; None: it only pulls.
        initial: values by name, or a function that gives them; used by the first client only (RULES M3). Without it
            the call waits until another client has sent them.
        block_bytes: size of a block, the unit of everything; a multiple of 4096. None: as the model has it, 1 MiB for a
            new one, 2 MiB if it is of 64 MiB or more.
        log_codec: "fp32", "bf16" or "fp16": in which the sum over all ranks is logged and replicated; part of the
            model. The leader rounds it once, and every replica applies that.
        codec: in which this handle's gradients travel; they are summed in fp32. weights_codec: in which weights come
            back, by push_pull and pull; the servers keep fp32. Ranks that take the same one compute with the same bits.

        Returns when the model is open and the rank held. Raises SpecMismatch, NotFound, RankTaken, InvalidArgument,
        DeadlineExceeded."""
        self._check()
        budget_s = self.timeout if timeout is None else timeout
        push, back, log = (
            _codec(field, value)
            for field, value in (("codec", codec), ("weights_codec", weights_codec), ("log_codec", log_codec))
        )
        if tensors is None:
            if optimizer is not None or initial is not None:
                raise InvalidArgument(f"model {name!r}: optimizer or initial values without tensors", "pass `tensors`")
            spec = None
        else:
            spec = self._spec(name, tensors, optimizer, ranks, reduction, non_finite, block_bytes, log)
        model = Model(client=self, name=name)
        initializer = Initializer(
            network=self._network, cluster=self._cluster, routes=self._routes, catalogue=self._catalogue
        )

        async def work() -> None:
            if spec is None:
                described = await self._catalogue.describe(name)
            else:
                described = await self._create(spec, any_blocks=block_bytes is None)
            described = await initializer.run(described, initial)
            await model._start(
                described,
                rank,
                network=self._network,
                cluster=self._cluster,
                routes=self._routes,
                watchers=self._watchers,
                catalogue=self._catalogue,
                codec=push,
                weights_codec=back,
                replicas=self._replicas,
            )

        def why() -> str:
            unreachable = ", ".join(map(str, self._watchers.unreachable()))
            known = (initializer.state, self._catalogue.problem, unreachable and f"nodes {unreachable} unreachable")
            return "; ".join(part for part in known if part)

        self._run(work(), budget_s, f"model {name!r}", why)
        if self._file is not None and rank is not None:
            self._file.note(name, rank)
        with self._lock:
            self._models.append(model)
        return model

    async def _create(self, spec: ModelSpec, *, any_blocks: bool) -> Description:
        """`any_blocks`: nobody asked for that size of blocks, so one that exists may have another."""
        try:
            return await self._catalogue.create(spec)
        except SpecMismatch:
            if any_blocks:
                found = await self._catalogue.describe(spec.name)
                if found.spec == replace(spec, block_bytes=found.spec.block_bytes):
                    return found
            raise

    @staticmethod
    def _spec(
        name: str,
        tensors: Tensors,
        optimizer: OptimizerSpec | None,
        ranks: int,
        reduction: Reduction,
        non_finite: NonFinite,
        block_bytes: int | None,
        log_codec: Codec,
    ) -> ModelSpec:
        if optimizer is None:
            raise InvalidArgument(f"model {name!r}: no optimizer", "pass one, such as paramserver.sgd(0.1)")
        if isinstance(tensors, Mapping):
            shapes: dict[str, Any] = {one: getattr(like, "shape", like) for one, like in tensors.items()}
            specs = tuple(TensorSpec(one, tuple(shape)) for one, shape in shapes.items())
        else:
            specs = tuple(tensors)
        size = BLOCK_BYTES_DEFAULT if block_bytes is None else block_bytes
        spec = ModelSpec(name, specs, optimizer, ranks, reduction, non_finite, size, log_codec)
        problems = spec.validate()
        if problems:
            raise InvalidArgument("; ".join(str(problem) for problem in problems))
        return spec if block_bytes is not None else replace(spec, block_bytes=usual_block_bytes(spec.parameters))

    # --- the end

    def close(self, *, release: bool = True) -> None:
        """Close all models and the connection. `release`: let others have the ranks at once; otherwise their leases
        end by themselves. A second call does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            models, self._models = self._models, []
        self._forget()
        if os.getpid() != self._pid:
            return
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

    def _check(self) -> None:
        if os.getpid() != self._pid:
            raise Forked("this client was made before a fork", "connect() in the child; gRPC does not survive a fork")
        if self._closed:
            raise Closed("the client is closed", "connect() again")

    def _run(self, work: Coroutine[Any, Any, T], timeout_s: float, what: str, why: Callable[[], str]) -> T:
        """Run `work` on the loop within a budget. Ctrl-C gives it up."""
        try:
            budget = Budget(timeout_s, what)
            future = self._loop.submit(within(budget, work, why))
        except BaseException:
            work.close()
            raise
        try:
            return outcome(future)
        except Refusal as refusal:
            raise to_error(refusal) from None
        except BaseException:
            future.cancel()
            raise

    def _dropped(self, model: Model) -> None:
        with self._lock:
            if model in self._models:
                self._models.remove(model)


def parse_servers(servers: str | Sequence[str]) -> tuple[str, ...]:
    """The addresses in "host:port,host:port". Raises InvalidArgument naming the first that is none."""
    parts = servers.split(",") if isinstance(servers, str) else list(servers)
    addresses = tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if not 1 <= len(addresses) <= SERVERS_MAX:
        raise InvalidArgument(f"servers: {len(addresses)} addresses", f"expected 1 to {SERVERS_MAX}, as host:port")
    for address in addresses:
        host, _, port = address.rpartition(":")
        bare_v6 = ":" in host and not (host.startswith("[") and host.endswith("]"))
        wrong_port = not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535)
        if not host or wrong_port or bare_v6 or not address.isprintable() or " " in address:
            raise InvalidArgument(f"server {address!r}", "expected host:port, such as 127.0.0.1:7001")
    return addresses


def _codec(field: str, value: str | Codec) -> Codec:
    try:
        return codec_named(value, field)
    except ValueError as error:
        cause, _, hint = str(error).partition(": ")
        raise InvalidArgument(cause, hint) from None


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
