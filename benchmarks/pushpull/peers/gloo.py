"""gloo's all-reduce, by torch.distributed: no server, a process a rank."""

from __future__ import annotations

from benchmarks.pushpull.case import Case
from benchmarks.pushpull.peers.environment import interpreter, version
from benchmarks.pushpull.system import System, Unavailable
from paramserver.lab.ports import ReservedPorts


class Gloo(System):
    name = "gloo"
    note = "no server, no weights but the ranks' own; all-reduce over TCP, then each rank steps for itself"

    def __init__(self, case: Case, *, malloc: bool = True) -> None:
        if case.workers == 1:
            raise Unavailable("with one rank an all-reduce moves nothing")
        self._python = interpreter("torch")
        super().__init__(case, malloc=malloc)

    @staticmethod
    def versions() -> dict[str, str]:
        return {"torch": version("torch", "torch")}

    def start(self) -> None:
        with ReservedPorts(1) as ports:
            port = ports.numbers[0]
        for rank in range(self.case.workers):
            flags: list[object] = ["--rank", rank, "--ranks", self.case.workers, "--port", port]
            flags += ["--elements", self.case.elements, "--gate", self.gate_file, "--record", self.record_file(rank)]
            self.module(f"rank {rank}", "benchmarks.pushpull.peers.gloo_node", *flags, python=self._python)
