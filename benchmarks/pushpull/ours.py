"""This project as a system under measurement: a local cluster, and worker processes that use the public API alone.

Must not know: turns, peers.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from benchmarks.pushpull.case import Case
from benchmarks.pushpull.system import System, Unavailable
from paramserver.lab.cluster import Cluster, ServerOptions

LEASE_FLAGS = ("--lease-ms", "3600000")
"""A rank that is stopped while others have their turn keeps its place."""
CODEC_MISSING = "Client.model() takes no codec in this version, so only fp32 can be pushed"


@dataclass(frozen=True, slots=True, kw_only=True)
class OurOptions:
    """`log_codec`: in which sums are logged and replicated; the case's codec is that of gradients and of weights coming
    back. `arrays`: the gradient is handed over as a dictionary of arrays of the caller's own, not as a `buffer()`.
    `block_kib` 0: the default. `server_flags` are of every server."""

    replicas: int = 3
    log_codec: str = "fp32"
    tensors: int = 1
    arrays: bool = False
    optimizer: str = "sgd"
    block_kib: int = 0
    server_flags: tuple[str, ...] = ()


class Ours(System):
    name = "paramserver"
    durability = "fsync"

    def __init__(self, case: Case, options: OurOptions | None = None, *, malloc: bool = True) -> None:
        self.options = options or OurOptions()
        if not {case.codec, self.options.log_codec} <= set(codecs()):
            raise Unavailable(CODEC_MISSING)
        super().__init__(case, malloc=malloc)
        self.replicas = self.options.replicas
        self._cluster: Cluster | None = None

    def new_cluster(self, options: ServerOptions) -> Cluster:
        return Cluster(self.options.replicas, folder=self.folder / "cluster", options=options)

    @property
    def cluster(self) -> Cluster:
        if self._cluster is None:
            raise RuntimeError("not started")
        return self._cluster

    def start(self) -> None:
        options = ServerOptions(flags=(*LEASE_FLAGS, *self.options.server_flags), environment=self.tree.environment)
        self._cluster = self.new_cluster(options)
        self._cluster.start()
        self.children += self._cluster.servers.values()
        for rank in range(self.case.workers):
            self.start_rank(rank)

    def start_rank(self, rank: int) -> None:
        case, options = self.case, self.options
        flags: list[object] = ["--servers", self.cluster.endpoints, "--rank", rank, "--ranks", case.workers]
        flags += ["--elements", case.elements, "--tensors", options.tensors, "--codec", case.codec]
        flags += ["--log-codec", options.log_codec]
        flags += ["--optimizer", options.optimizer, "--block-kib", options.block_kib]
        flags += ["--gate", self.gate_file, "--record", self.record_file(rank)]
        flags += ["--arrays"] if options.arrays else []
        self.module(f"load {rank}", "benchmarks.pushpull.load", *flags)

    def server_pids(self) -> list[int]:
        return [server.pid for server in self.cluster.servers.values()]

    @classmethod
    def resident_bytes(cls, case: Case) -> int:
        return 3 * (10 * case.model_bytes + (200 << 20)) + case.workers * (5 * case.model_bytes + (150 << 20))

    def close(self) -> None:
        if self._cluster is not None:
            self._cluster.close()
        super().close()


def codecs() -> tuple[str, ...]:
    from worker.client import Client

    known = {"codec", "weights_codec", "log_codec"} <= set(inspect.signature(Client.model).parameters)
    return ("fp32", "bf16", "fp16") if known else ("fp32",)
