"""One process of torch RPC's parameter server: number 0 is the server, the others are trainers.

As PyTorch's tutorial on batch updates has it: the last trainer's call of a step applies the sum, and all are answered
with the weights. `--checkpoint FILE`: the server saves every so many steps, and begins with what it finds. Timeouts
are the library's own.
"""

from __future__ import annotations

import argparse
import os
import threading
from pathlib import Path
from typing import Any

import torch
from torch.distributed import rpc

from benchmarks.faults.peers.ledger import BLOCKS, CHECKPOINT_EVERY, Ledger


class Server:
    """Of this process, if it is the server."""

    def __init__(self, ranks: int, checkpoint: Path | None, stop: Path) -> None:
        self.ranks, self.checkpoint, self.stop = ranks, checkpoint, stop
        self.lock = threading.Lock()
        self.weights, self.version = torch.zeros(ranks, BLOCKS), 0
        if checkpoint is not None and checkpoint.exists():
            saved = torch.load(checkpoint)
            self.weights, self.version = saved["weights"], saved["version"]
        self.begin()

    def begin(self) -> None:
        self.sum, self.count = torch.zeros(self.ranks, BLOCKS), 0
        self.answer: Any = torch.futures.Future()

    def take(self, gradient: Any) -> Any:
        with self.lock:
            answer = self.answer
            self.sum += gradient
            self.count += 1
            if self.count == self.ranks:
                self.weights = self.weights + self.sum
                self.version += 1
                if self.checkpoint is not None and self.version % CHECKPOINT_EVERY == 0:
                    self.save(self.checkpoint)
                self.begin()
                # All take the same number of steps, so the server says when the drill is over.
                answer.set_result((self.weights, self.stop.exists()))
        return answer

    def save(self, path: Path) -> None:
        torch.save({"weights": self.weights, "version": self.version}, f"{path}.new")
        os.replace(f"{path}.new", path)


server: Server | None = None


@rpc.functions.async_execution
def push_pull(gradient: Any) -> Any:
    if server is None:
        raise RuntimeError("the server is not there yet")
    return server.take(gradient)


def version() -> int:
    """-1: not there yet."""
    return server.version if server is not None else -1


def train(rank: int, ranks: int, ledger: Ledger) -> None:
    while (first := rpc.rpc_sync("server", version)) < 0:
        pass
    ledger.next_step = first
    ledger.write("start", step=first)
    gradient = torch.zeros(ranks, BLOCKS)
    gradient[rank] = 1
    for step in ledger.steps():
        try:
            weights, over = rpc.rpc_sync("server", push_pull, args=(gradient,))
        except Exception as error:
            ledger.error(step, error)
            raise
        if over:
            ledger.write("step", step=step)
            ledger.final({rank: weights[rank].tolist()})
            return


def main() -> None:
    global server
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", type=int, required=True, help="-1: the server")
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--stop", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path)
    options = parser.parse_args()
    if options.rank < 0:
        server = Server(options.ranks, options.checkpoint, options.stop)
    rpc.init_rpc(
        "server" if options.rank < 0 else f"trainer{options.rank}",
        rank=options.rank + 1,
        world_size=options.ranks + 1,
        rpc_backend_options=rpc.TensorPipeRpcBackendOptions(init_method=f"tcp://127.0.0.1:{options.port}"),
    )
    if options.rank >= 0:
        # The server decides when it ends: a stop of the ledger's own would leave the others behind.
        train(options.rank, options.ranks, Ledger(options.record, Path("/nonexistent")))
    rpc.shutdown()


if __name__ == "__main__":
    main()
