"""torch RPC: one server process with the weights, a trainer process a rank, synchronous steps."""

from __future__ import annotations

from benchmarks.faults.peers.ledger import CHECKPOINT_EVERY
from benchmarks.faults.peers.system import KILL_SERVER, KILL_WORKER, Peer, Supervised
from benchmarks.pushpull.peers.environment import interpreter, version
from paramserver.lab.ports import ReservedPorts
from paramserver.lab.processes import Child

NODE = "benchmarks.faults.peers.torch_rpc_node"


class TorchRpc(Peer):
    name = "torch-rpc"
    label = "one server, not replicated; timeouts as they come (60 s)"
    load = "synchronous steps"
    checkpoint = False

    def __init__(self) -> None:
        self._python = interpreter("torch")
        super().__init__()

    @staticmethod
    def versions() -> dict[str, str]:
        return {"torch": version("torch", "torch")}

    def start(self) -> None:
        with ReservedPorts(1) as ports:
            self._flags: list[object] = ["--ranks", self.ranks, "--port", ports.numbers[0]]
        if self.checkpoint:
            self._flags += ["--checkpoint", self.folder / "checkpoint"]
        line: list[object] = [self._python, "-m", NODE, "--rank", -1, "--record", self.folder / "none"]
        self._server: Child = self.child("server", [*line, "--stop", self.stop_file, *self._flags])
        for rank in range(self.ranks):
            self.worker(rank, NODE, *self._flags, python=self._python)

    def server_pid(self) -> int:
        return self._server.pid


class TorchRpcCheckpoint(TorchRpc, Supervised):
    name = "torch-rpc-checkpoint"
    label = "as torchrun does: a process that died has all ended and started again, from a checkpoint every 100 steps"
    durability = "checkpoint every 100 steps"
    steps_before = CHECKPOINT_EVERY + 20
    faults = (KILL_SERVER, KILL_WORKER)
    checkpoint = True

    def restart(self) -> None:
        for child in self.children:
            child.kill()
        self.children.clear()
        self.start()
