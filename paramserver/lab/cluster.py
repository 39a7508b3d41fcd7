"""The one harness: server and worker processes of a local cluster, and what may be done to them.

    with Cluster() as cluster:
        worker = cluster.start_worker(WorkerOptions(rank=0, ranks=1, steps=100))
        cluster.kill(cluster.leader_of(1))
        worker.wait(30)

Owns folders, ports, command lines and waiting. Invariants: nothing here sleeps to be "surely ready": a server is ready
when it says so, and everything else is awaited with a deadline; every process is reaped, however the test or the demo
ends. Must not know: what a test wants to prove.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from paramserver.lab import status as snapshots
from paramserver.lab.errors import DeadlinePassed, LabError
from paramserver.lab.faults import NodeFaults
from paramserver.lab.lines import SocketFolder
from paramserver.lab.links.control import Links
from paramserver.lab.ports import ReservedPorts
from paramserver.lab.processes import Child

T = TypeVar("T")

READY_TIMEOUT_S = 60.0
WAIT_TIMEOUT_S = 30.0
POLL_S = 0.01
CATALOGUE_GROUP = 0
WAITING = "waiting to be admitted"
"""What a server says that came after the bootstrap, until it is admitted."""
SPARE_NODES = 2
"""With links: how many nodes under new numbers may come later; the links know them from the start."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Of every server of a cluster. `flags` are passed on as they are; `zones`: node -> label."""

    token: str = ""
    flags: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    zones: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """One `paramserver worker`. None: that command's own default."""

    rank: int
    ranks: int
    steps: int | None = None
    model_name: str | None = None
    batch: int | None = None
    seed: int | None = None
    optimizer: str | None = None
    device: str | None = None
    flags: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


class WorkerProcess(Child):
    """A worker; a start after a kill is the same command with the same session file, and takes its rank back."""

    def __init__(
        self, options: WorkerOptions, command: Sequence[str], folder: Path, environment: Mapping[str, str]
    ) -> None:
        super().__init__(
            f"worker {options.rank}", command, folder / f"worker-{options.rank}.log", environment=environment
        )
        self.options = options
        self.record = record_file(folder, options.rank)


def record_file(folder: Path, rank: int) -> Path:
    return folder / f"worker-{rank}.record"


class Cluster:
    """`nodes` servers on loopback. Without `folder`: a temporary one, removed at the end. `links`: what nodes say to
    each other goes through a proxy that can spoil it (`cluster.links`); workers are not affected."""

    def __init__(
        self,
        nodes: int = 3,
        *,
        folder: Path | None = None,
        options: ServerOptions | None = None,
        keep: bool = False,
        links: bool = False,
        faults: bool = False,
        seed: int = 0,
    ) -> None:
        """`faults`: servers are started with `--fault-injection` (`cluster.faults(node)`). `seed`: of the links'
        draws."""
        self.options = options or ServerOptions()
        self._temporary = folder is None and not keep
        self.folder = Path(tempfile.mkdtemp(prefix="paramserver-")) if folder is None else folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self._ports = ReservedPorts(nodes)
        self._more_ports: list[ReservedPorts] = []
        self.addresses: dict[int, str] = {
            node: f"{self._ports.host}:{port}" for node, port in enumerate(self._ports.numbers, start=1)
        }
        self._bootstrap = ",".join(f"{node}={address}" for node, address in self.addresses.items())
        self._sockets = SocketFolder(self.folder)
        self._faults = faults
        self._spare: dict[int, str] = {}
        """Where nodes will be that come later, and where those were that left."""
        self._peer_addresses: dict[int, str] = {}
        """Where nodes listen for each other, with links, which must know it."""
        self._links: Links | None = None
        if links:
            ports = ReservedPorts(SPARE_NODES)
            self._more_ports.append(ports)
            for node, port in enumerate(ports.numbers, start=nodes + 1):
                self._spare[node] = f"{ports.host}:{port}"
            known = {**self.addresses, **self._spare}
            among = ReservedPorts(len(known))
            self._more_ports.append(among)
            self._peer_addresses = {
                node: f"{among.host}:{port}" for node, port in zip(known, among.numbers, strict=True)
            }
            self._links = Links(
                known,
                peer_addresses=self._peer_addresses,
                sockets=self._sockets,
                start=self.start_child,
                seed=seed,
            )
        self.servers: dict[int, Child] = {
            node: self._server(node, self._server_command(node)) for node in self.addresses
        }
        self.workers: dict[int, WorkerProcess] = {}
        self.children: list[Child] = []
        """Others that were started here and end with the cluster."""

    # --- servers

    @property
    def endpoints(self) -> str:
        """As `--servers` and `connect()` take them."""
        return ",".join(self.addresses.values())

    @property
    def running_endpoints(self) -> str:
        """Of the servers that run."""
        return ",".join(address for node, address in self.addresses.items() if self.servers[node].running)

    def data_folder(self, node: int) -> Path:
        return self.folder / f"node-{node}"

    def start(self) -> None:
        """Every server that does not run. The first start needs all of them (RULES I2)."""
        if self._links is not None:
            self._links.start()
        starting = [node for node, server in self.servers.items() if not server.running]
        for node in starting:
            self.servers[node].start()
        self.await_ready(starting)

    def start_server(self, node: int, *, wait: bool = True) -> None:
        self.servers[node].start()
        if wait:
            self.await_ready([node])

    def join(self, node: int) -> str:
        """Start a server that comes after the bootstrap, on an empty folder, under a new number or that of a dead one.
        Returns where, when it waits to be admitted."""
        if node not in self.addresses:
            self.addresses[node] = self._new_address(node)
        shutil.rmtree(self.data_folder(node), ignore_errors=True)
        server = self._server(node, [*self._server_command(node), "--join", self.addresses[node]])
        if node in self.servers:
            self.servers[node].kill()
        self.servers[node] = server
        server.start()
        self.wait_for(lambda: WAITING in server.output() or not server.running, f"{server.name} to wait")
        if not server.running:
            raise LabError(f"{server.name} ended with {server.code}", f"log {server.log}:\n{server.last_words()}")
        return self.addresses[node]

    def retire(self, node: int) -> None:
        """Stop a server that was removed from the cluster for good, and forget it; `join` may take its number again."""
        self.servers.pop(node).terminate()
        self._spare[node] = self.addresses.pop(node)

    def _new_address(self, node: int) -> str:
        if node in self._spare:
            return self._spare[node]
        if self._links is not None:
            raise ValueError(f"no links for node {node}; those that may come later are {sorted(self._spare)}")
        ports = ReservedPorts(1)
        self._more_ports.append(ports)
        return f"{ports.host}:{ports.numbers[0]}"

    def command(self, *words: str, timeout_s: float = READY_TIMEOUT_S) -> subprocess.CompletedProcess[str]:
        """One of the commands that take `--servers`, as a person would give it; the servers that run are named."""
        command = [*PARAMSERVER, *words, "--servers", self.running_endpoints]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)

    def await_ready(self, nodes: Iterable[int]) -> None:
        """Until each has said `ready`."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        for node in nodes:
            self.servers[node].await_line(f"ready node={node} ", max(0.0, deadline - time.monotonic()))

    def kill(self, node: int) -> float:
        """kill -9. Returns when (`time.monotonic()`)."""
        return self.servers[node].kill()

    def pause(self, node: int) -> None:
        self.servers[node].pause()

    def resume(self, node: int) -> None:
        self.servers[node].resume()

    def terminate(self, node: int) -> int:
        return self.servers[node].terminate()

    def terminate_all(self) -> dict[int, int]:
        """Ask all servers to stop, in turn; node -> exit status."""
        return {node: server.terminate() for node, server in self.servers.items()}

    def restart(self, node: int) -> None:
        if self.servers[node].running:
            self.servers[node].terminate()
        self.start_server(node)

    # --- faults

    @property
    def links(self) -> Links:
        if self._links is None:
            raise ValueError("this cluster has no links: Cluster(links=True)")
        return self._links

    def faults(self, node: int) -> NodeFaults:
        """Of the node's disk, clock and interpreter."""
        if not self._faults:
            raise ValueError("this cluster's servers take no faults: Cluster(faults=True)")
        return NodeFaults(node, self._sockets.path(f"faults-{node}"))

    # --- workers

    def start_worker(self, options: WorkerOptions) -> WorkerProcess:
        worker = WorkerProcess(options, self._worker_command(options), self.folder, options.environment)
        self.workers[options.rank] = worker
        worker.start()
        return worker

    def start_workers(self, options: Iterable[WorkerOptions]) -> list[WorkerProcess]:
        return [self.start_worker(one) for one in options]

    def await_workers(self, timeout_s: float) -> None:
        """Until all have ended well; the first that did not is a LabError with its last words."""
        deadline = time.monotonic() + timeout_s
        for worker in self.workers.values():
            code = worker.wait(max(0.0, deadline - time.monotonic()))
            if code != 0:
                raise LabError(f"{worker.name} ended with {code}", f"log {worker.log}:\n{worker.last_words()}")

    def start_child(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> Child:
        """Any other process (a benchmark's load): its log lies in the folder, it ends with the cluster."""
        child = Child(name, command, self.folder / f"{name.replace(' ', '-')}.log", environment=environment)
        self.children.append(child)
        child.start()
        return child

    # --- questions

    def status(self, node: int, *, timeout_s: float = snapshots.ASK_TIMEOUT_S) -> snapshots.Answer:
        return snapshots.ask(self.addresses[node], timeout_s=timeout_s)

    def statuses(
        self, *, blocks: bool = False, timeout_s: float = snapshots.ASK_TIMEOUT_S
    ) -> tuple[snapshots.Answer, ...]:
        """Of the servers that run and are not known to be dead."""
        alive = [address for node, address in self.addresses.items() if self.servers[node].running]
        return snapshots.ask_all(alive, blocks=blocks, timeout_s=timeout_s)

    def leader_of(self, group: int, timeout_s: float = WAIT_TIMEOUT_S) -> int:
        """The node that leads the group, awaited."""

        def led() -> int | None:
            leader = snapshots.leader_of(self.statuses(), group)
            return None if leader is None else leader.node

        return self.wait_for(led, f"a leader of group {group}", timeout_s)

    def await_leaders(self, groups: Iterable[int], timeout_s: float = WAIT_TIMEOUT_S) -> dict[int, int]:
        """Until each of the groups has a leader; group -> node."""
        wanted = set(groups)

        def led() -> dict[int, int] | None:
            found = snapshots.leaders(self.statuses())
            return found if wanted <= found.keys() else None

        return self.wait_for(led, f"leaders of groups {sorted(wanted)}", timeout_s)

    def wait_for(
        self, condition: Callable[[], T | None], what: str, timeout_s: float = WAIT_TIMEOUT_S, poll_s: float = POLL_S
    ) -> T:
        """The first value of `condition` that is neither None nor False; DeadlinePassed names `what`."""
        return wait_for(condition, what, timeout_s, poll_s)

    # --- end

    def close(self) -> None:
        """Kill and reap everything; a temporary folder is removed."""
        for child in (*self.workers.values(), *self.children, *self.servers.values()):
            child.kill()
        if self._links is not None:
            self._links.close()
        self._sockets.close()
        for ports in (self._ports, *self._more_ports):
            ports.close()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Cluster:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- command lines

    def _server(self, node: int, command: list[str]) -> Child:
        log = self.folder / f"server-{node}.log"
        return Child(f"server {node}", command, log, environment=self.options.environment)

    def _server_command(self, node: int) -> list[str]:
        command = [*PARAMSERVER, "server", "--node", str(node), "--members", self._bootstrap]
        command += ["--data-dir", str(self.data_folder(node))]
        if self.options.token:
            command += ["--token", self.options.token]
        if node in self.options.zones:
            command += ["--zone", self.options.zones[node]]
        if self._faults:
            command += ["--fault-injection", self._sockets.path(f"faults-{node}")]
        if self._links is not None:
            command += ["--peer-listen", self._peer_addresses[node]]
            command += ["--dial", ",".join(f"{known}={instead}" for known, instead in self._links.dial(node).items())]
        return [*command, *self.options.flags]

    def _worker_command(self, options: WorkerOptions) -> list[str]:
        session = self.folder / f"worker-{options.rank}.session"
        record = record_file(self.folder, options.rank)
        command = [*PARAMSERVER, "worker", "--servers", self.endpoints]
        command += ["--rank", str(options.rank), "--ranks", str(options.ranks)]
        command += ["--session", str(session), "--record", str(record)]
        optional = {
            "--steps": options.steps,
            "--model-name": options.model_name,
            "--batch": options.batch,
            "--seed": options.seed,
            "--optimizer": options.optimizer,
            "--device": options.device,
        }
        for flag, value in optional.items():
            if value is not None:
                command += [flag, str(value)]
        return [*command, *options.flags]


PARAMSERVER = (sys.executable, "-m", "paramserver")


def wait_for(condition: Callable[[], T | None], what: str, timeout_s: float, poll_s: float = POLL_S) -> T:
    """Ask until there is an answer that is neither None nor False."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value is not None and value is not False:
            return value
        if time.monotonic() > deadline:
            raise DeadlinePassed(f"waited {timeout_s:g} s for {what}", "the logs of the servers say more")
        time.sleep(poll_s)
