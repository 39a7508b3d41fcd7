"""torch RPC as a parameter server: one server process, a trainer process a rank, tensors over TCP."""

from __future__ import annotations

from benchmarks.pushpull.case import Case
from benchmarks.pushpull.peers.environment import interpreter, version
from benchmarks.pushpull.system import System
from paramserver.lab.ports import ReservedPorts


class TorchRpc(System):
    name = "torch-rpc"
    note = "not replicated; TensorPipe over TCP only; sums and steps in place as in PyTorch's batch-updating tutorial"
    codecs = ("fp32", "bf16")

    def __init__(self, case: Case, *, malloc: bool = True) -> None:
        self._python = interpreter("torch")
        super().__init__(case, malloc=malloc)

    @staticmethod
    def versions() -> dict[str, str]:
        return {"torch": version("torch", "torch")}

    def start(self) -> None:
        with ReservedPorts(1) as ports:
            port = ports.numbers[0]
        for number in range(self.case.workers + 1):
            flags: list[object] = ["--number", number, "--workers", self.case.workers, "--port", port]
            flags += ["--elements", self.case.elements, "--codec", self.case.codec, "--gate", self.gate_file]
            flags += ["--record", self.record_file(number - 1)]
            name = f"trainer {number - 1}" if number else "server"
            self.module(name, "benchmarks.pushpull.peers.torch_rpc_node", *flags, python=self._python)

    def server_pids(self) -> list[int]:
        return [self.children[0].pid]


class TorchRpcPlain(TorchRpc):
    """With glibc's malloc as it is. In the environment that all systems get by RULES F3 its server's heap grows for
    minutes, and until it has settled every step meets fresh pages: a rate that wanders, and is mostly the lower one. So
    that nobody is beaten by our own settings, it is measured both ways."""

    name = "torch-rpc-plain"
    note = "torch-rpc with glibc's malloc as it is"

    def __init__(self, case: Case) -> None:
        super().__init__(case, malloc=False)
